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
from pathlib import Path

from devices.driver import Say
from devices.errors import DeviceError
from devices.staging import SHORT_S, describe, push_file, remote_sha256
from export.artifact import Format
from runtimes.errors import TransportError
from runtimes.host import Host, last_lines

ROOMS = ("export", "runtimes", "devices")
SOURCE = Path(__file__).parent.parent
OLDEST = (3, 11)
VENV_S = 300.0
PIP_S = 1800.0
_READY = "phi-edge-ready"  # written last: a venv without it is half made
# ExecuTorch's wheel also asks for its exporter's libraries. The runtime needs none of them, and one (coremltools) has
# no wheel for ARM Linux: pip would refuse the whole.
_ALONE = ("executorch",)
# On PyPI torch for ARM Linux is CUDA's build, with 2 GB of NVIDIA's libraries. "+cpu" counts as newer, so pip takes it.
_INDEXES: Mapping[Format, Sequence[str]] = {"executorch": ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]}


def bring_code(host: Host, cache: str, python: str, say: Say) -> str:
    """Our packages' sources on the device; returns the folder for PYTHONPATH."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / "code.zip"
        pack_code(wheel)
        file = describe(wheel)
        code = f"{cache}/code/{file.sha256[:16]}"
        if _is_there(host, code):
            return code
        zipped = f"{code}.zip"
        push_file(host, wheel, zipped, file, say)
    host.run(["rm", "-rf", f"{code}.part"], deadline_s=SHORT_S).checked("removing a half unpacked folder")
    unpack = [python, "-m", "zipfile", "-e", zipped, f"{code}.part"]
    host.run(unpack, deadline_s=SHORT_S).checked("unpacking our code")
    host.run(["mv", f"{code}.part", code], deadline_s=SHORT_S).checked("putting our code in its place")
    return code


def pack_code(target: Path) -> None:
    """All our modules into one zip, byte for byte the same for the same sources."""
    names = sorted(path for room in ROOMS for path in (SOURCE / room).rglob("*.py"))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for path in names:
            entry = zipfile.ZipInfo(path.relative_to(SOURCE).as_posix(), (1980, 1, 1, 0, 0, 0))
            out.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def bring_venv(
    host: Host, cache: str, engine: Format, wheelhouse: Path | None, say: Say, *, system_python: str = "python3"
) -> str:
    """A virtual environment with the engine; returns its Python. `wheelhouse`: wheels are taken from it alone."""
    wanted = requirements(engine)
    venv = f"{cache}/venv/{hashlib.sha256(chr(10).join(wanted).encode()).hexdigest()[:16]}"
    python = f"{venv}/bin/python"
    if _is_there(host, f"{venv}/{_READY}"):
        return python
    check_python(host, system_python)
    where = _INDEXES.get(engine, ())
    if wheelhouse is not None:
        where = ["--no-index", "--find-links", _bring_wheels(host, cache, wheelhouse, say)]
    say("making a virtual environment")
    host.run(["rm", "-rf", venv], deadline_s=VENV_S).checked("removing a half made environment")
    made = host.run([system_python, "-m", "venv", venv], deadline_s=VENV_S)
    if made.exit_code != 0:
        raise TransportError(
            "python3 -m venv failed on the device; on Debian and Raspberry Pi OS: sudo apt-get install python3-venv",
            exit_code=made.exit_code,
            last_lines=last_lines(made.stdout + made.stderr),
        )
    say(f"installing {', '.join(wanted)}")
    # Not compiled: the agent imports a tenth of it, and Python compiles that at the first start.
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    pip += ["--no-compile", *where]
    alone = [each for each in wanted if each.startswith(_ALONE)]
    host.run([*pip, *(each for each in wanted if each not in alone)], deadline_s=PIP_S).checked("pip install")
    if alone:
        host.run([*pip, "--no-deps", *alone], deadline_s=PIP_S).checked("pip install")
    host.run(["touch", f"{venv}/{_READY}"], deadline_s=SHORT_S).checked("finishing the environment")
    return python


def check_python(host: Host, python: str) -> tuple[int, ...]:
    """The interpreter's version. Raises DeviceError for a missing or too old one."""
    command = [python, "-c", "import sys; print(*sys.version_info[:3])"]
    done = host.run(command, deadline_s=SHORT_S)
    if done.exit_code != 0:
        raise DeviceError(
            f"the device has no working {python} ({' '.join(last_lines(done.stderr)[-1:])}); install it "
            "(sudo apt-get install python3 python3-venv), or set `python` in lab.toml"
        )
    version = tuple(int(word) for word in done.stdout.split())
    if version < OLDEST:
        raise DeviceError(
            f"{python} on the device is {'.'.join(map(str, version))}; needed is {'.'.join(map(str, OLDEST))} or "
            "newer: use Raspberry Pi OS Bookworm or newer, or set `python` in lab.toml"
        )
    return version


def requirements(engine: Format) -> list[str]:
    """The light rooms' own and the engine's, as pip takes them."""
    try:
        lines = importlib.metadata.requires("phi-edge") or []
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return sorted([*project["dependencies"], *project["optional-dependencies"][engine]])
    pairs = [[part.strip() for part in f"{line};".split(";")[:2]] for line in lines]
    extra = re.compile(rf"extra == ['\"]{engine}['\"]")
    return sorted(name for name, marker in pairs if not marker or extra.fullmatch(marker))


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
    return host.run(["test", "-e", path], deadline_s=SHORT_S).exit_code == 0
