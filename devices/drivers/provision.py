"""A board's Python for the agent: our code by hash, and an interpreter with the engine, made there if need be.

Two things, so that a changed line of ours costs a push of 200 kB and no run of pip: <cache>/code/<hash>/ is put on
PYTHONPATH; <cache>/venv/<hash of the requirements>/ holds the light extra alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.drivers.driver import Say
from devices.drivers.files import SHORT_S, files_of
from devices.drivers.staging import describe, push_file, remote_sha256
from devices.errors import DeviceError
from devices.transports.host import Host, last_lines
from runtimes.errors import TransportError

ROOMS = ("export", "runtimes", "devices")
SOURCE = Path(__file__).parents[2]
OLDEST = (3, 11)
VENV_S = 300.0
PIP_S = 1800.0
_CODE = "runtimes/agent/server.py"  # in a folder of our code
_READY = "phi-edge-ready"  # written last: a venv without it is half made
# ExecuTorch's wheel also asks for its exporter's libraries. The runtime needs none of them, and one (coremltools) has
# no wheel for ARM Linux: pip would refuse the whole.
_ALONE = ("executorch",)
# With a wheelhouse pip must not read the device's own settings: a constraint or an index there would still apply.
# --isolated ignores PIP_ variables and the user's file; the machine's files are ignored by this variable alone.
_PIP_WITHOUT_SETTINGS = (
    "import os, runpy; os.environ['PIP_CONFIG_FILE'] = os.devnull; runpy.run_module('pip', run_name='__main__')"
)
# On PyPI torch for ARM Linux is CUDA's build, with 2 GB of NVIDIA's libraries. "+cpu" counts as newer, so pip takes it.
_INDEXES: Mapping[str, Sequence[str]] = {"executorch": ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]}


@dataclass(frozen=True, kw_only=True)
class System:
    """What differs between a board's Python and Windows'."""

    python_in_venv: str
    python_fix: str
    newer_fix: str
    venv_fix: str


POSIX = System(
    python_in_venv="bin/python",
    python_fix="sudo apt-get install python3 python3-venv",
    newer_fix="use Raspberry Pi OS Bookworm or newer",
    venv_fix="on Debian and Raspberry Pi OS: sudo apt-get install python3-venv",
)
WINDOWS = System(
    python_in_venv="Scripts/python.exe",
    python_fix="winget install Python.Python.3.12",
    newer_fix="winget install Python.Python.3.12",
    venv_fix="install Python from python.org or by winget: the embeddable one has no venv",
)


def bring_code(host: Host, cache: str, python: str, say: Say) -> str:
    """Our packages' sources on the device; returns the folder for PYTHONPATH."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / "code.zip"
        pack_code(wheel)
        file = describe(wheel)
        code = f"{cache}/code/{file.sha256[:16]}"
        if _is_there(host, f"{code}/{_CODE}"):
            return code
        zipped = f"{code}.zip"
        push_file(host, wheel, zipped, file, say)
    files_of(host).remove(f"{code}.part")
    unpack = [python, "-m", "zipfile", "-e", zipped, f"{code}.part"]
    host.run(unpack, deadline_s=SHORT_S).checked("unpacking our code")
    files_of(host).replace(f"{code}.part", code)
    return code


def pack_code(target: Path) -> None:
    """All our modules into one zip, byte for byte the same for the same sources."""
    names = sorted(path for room in ROOMS for path in (SOURCE / room).rglob("*.py"))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for path in names:
            entry = zipfile.ZipInfo(path.relative_to(SOURCE).as_posix(), (1980, 1, 1, 0, 0, 0))
            out.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def bring_venv(
    host: Host, cache: str, extra: str, wheelhouse: Path | None, say: Say, *, system: System = POSIX, python: str
) -> str:
    """A virtual environment with what the extra brings; returns its Python. It is made by `python`. `wheelhouse`:
    wheels are taken from it alone."""
    wanted = requirements(extra)
    venv = f"{cache}/venv/{hashlib.sha256(chr(10).join(wanted).encode()).hexdigest()[:16]}"
    inside = f"{venv}/{system.python_in_venv}"
    if _is_there(host, f"{venv}/{_READY}"):
        return inside
    check_python(host, python, system)
    pip, where = [inside, "-m", "pip"], _INDEXES.get(extra, ())
    if wheelhouse is not None:
        pip = [inside, "-c", _PIP_WITHOUT_SETTINGS, "--isolated"]
        where = ["--no-index", "--find-links", _bring_wheels(host, cache, wheelhouse, say)]
    say("making a virtual environment")
    files_of(host).remove(venv)
    made = host.run([python, "-m", "venv", venv], deadline_s=VENV_S)
    if made.exit_code != 0:
        raise TransportError(
            f"{python} -m venv failed on the device; {system.venv_fix}",
            exit_code=made.exit_code,
            last_lines=last_lines(made.stdout + made.stderr),
        )
    say(f"installing {', '.join(wanted)}")
    # Not compiled: the agent imports a tenth of it, and Python compiles that at the first start.
    pip += ["install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--no-compile", *where]
    alone = [each for each in wanted if each.startswith(_ALONE)]
    host.run([*pip, *(each for each in wanted if each not in alone)], deadline_s=PIP_S).checked("pip install")
    if alone:
        host.run([*pip, "--no-deps", *alone], deadline_s=PIP_S).checked("pip install")
    with tempfile.NamedTemporaryFile() as nothing:
        host.push(Path(nothing.name), f"{venv}/{_READY}", deadline_s=SHORT_S)
    return inside


def check_python(host: Host, python: str, system: System = POSIX) -> tuple[int, ...]:
    """The interpreter's version. Raises DeviceError for a missing or too old one."""
    command = [python, "-c", "import sys; print(*sys.version_info[:3])"]
    done = host.run(command, deadline_s=SHORT_S)
    if done.exit_code != 0:
        raise DeviceError(
            f"the device has no working {python} ({' '.join(last_lines(done.stderr)[-1:])}); install it "
            f"({system.python_fix}), or set `python` in lab.toml"
        )
    version = tuple(int(word) for word in done.stdout.split())
    if version < OLDEST:
        raise DeviceError(
            f"{python} on the device is {'.'.join(map(str, version))}; needed is {'.'.join(map(str, OLDEST))} or "
            f"newer: {system.newer_fix}, or set `python` in lab.toml"
        )
    return version


def requirements(extra: str) -> list[str]:
    """The light rooms' own and the extra's, as pip takes them, with the markers that are the device's to judge."""
    project = SOURCE / "pyproject.toml"
    if project.is_file():  # a checkout, whose installed metadata may be older than itself
        content = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return sorted([*content["dependencies"], *content["optional-dependencies"][extra]])
    lines = importlib.metadata.requires("phi-edge") or []
    return sorted(kept for line in lines if (kept := of_extra(line, extra)) is not None)


def of_extra(line: str, extra: str) -> str | None:
    """`NAME; MARKER and extra == "EXTRA"` without its last part; None for another extra's."""
    name, _, marker = (part.strip() for part in line.partition(";"))
    found = re.search(r"""(?:^|\band\s+)extra == ['"]([\w.-]+)['"]$""", marker)
    if found is None:
        return line
    if found[1] != extra:
        return None
    rest = marker[: found.start()].strip()
    return f"{name}; {rest}" if rest else name


def _bring_wheels(host: Host, cache: str, wheelhouse: Path, say: Say) -> str:
    wheels: Sequence[Path] = sorted(wheelhouse.glob("*.whl"))
    if not wheels:
        raise DeviceError(f"{wheelhouse}: holds no wheel; fill it with `pip download --platform … -d {wheelhouse}`")
    folder = f"{cache}/wheels"
    for wheel in wheels:
        file, remote = describe(wheel), f"{folder}/{wheel.name}"
        if not _is_there(host, remote) or remote_sha256(host, remote, file.bytes) != file.sha256:
            push_file(host, wheel, remote, file, say)
    return folder


def _is_there(host: Host, path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return files_of(host).exist(folder, [name])[0]
