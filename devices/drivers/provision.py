"""A board's Python for the agent: our code by hash, and an interpreter with the engine, made there if need be.

These are two things, so that a changed line of ours costs a push of 100 kB and no run of pip: <cache>/code/<hash>/ is
put on PYTHONPATH; <cache>/venv/<hash of the requirements>/ has the engine and AGENT_NEEDS only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from devices.drivers.driver import Say
from devices.drivers.staging import describe, push_file
from devices.errors import DeviceError
from devices.transports.host import SILENT_SHELL, Host, last_lines
from export.strict import parse_json
from runtimes.errors import TransportError

SOURCE = Path(__file__).parents[2]
# What an agent imports: of the exporter what an artifact is, and of the runtimes all but the app bundles.
_ARTIFACT = ("__init__.py", "artifact.py", "errors.py", "stranger.py", "strict.py", "template", "tokenizer")
CODE = (*(f"export/{name}" for name in _ARTIFACT), "runtimes")
NOT_CODE = "runtimes/bundle"
AGENT_NEEDS = ("numpy", "psutil")  # of our own requirements; the others are the command line's
# Every device gets this extra beside its engine's, for JSON schemas, grammars and demanded tools.
_GRAMMAR, _GRAMMAR_NEEDS = "grammar", "llguidance"
OLDEST = (3, 11)
_CODE = "runtimes/agent/server.py"  # in a folder of our code
_READY = "phi-edge-ready"  # written last: a venv without it is half made
# ExecuTorch's wheel also asks for its exporter's libraries. The runtime needs none of them, and one (coremltools) has
# no wheel for ARM Linux, so that pip would refuse everything.
_ALONE = ("executorch",)
# With a wheelhouse pip must not read the device's own settings: a constraint or an index there would still apply.
# --isolated ignores PIP_ variables and the user's file; only this variable makes it ignore the machine's files.
_PIP_WITHOUT_SETTINGS = (
    "import os, runpy; os.environ['PIP_CONFIG_FILE'] = os.devnull; runpy.run_module('pip', run_name='__main__')"
)
# On PyPI torch for ARM Linux is CUDA's build, with 2 GB of NVIDIA's libraries. "+cpu" counts as newer, so pip takes it.
_INDEXES: Mapping[str, Sequence[str]] = {"executorch": ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]}
# Any Python 3 runs it. The second part is the environment that requirements' markers are judged in (PEP 508).
_LOOK = """
import json, os, platform, sys
print(json.dumps([sys.version_info[:3], {
    "implementation_name": sys.implementation.name, "implementation_version": platform.python_version(),
    "os_name": os.name, "platform_machine": platform.machine(), "platform_release": platform.release(),
    "platform_system": platform.system(), "platform_version": platform.version(),
    "platform_python_implementation": platform.python_implementation(), "sys_platform": sys.platform,
    "python_full_version": platform.python_version(),
    "python_version": ".".join(platform.python_version_tuple()[:2])}]))
"""


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


@dataclass(frozen=True, kw_only=True)
class Python:
    """An interpreter on the device."""

    command: str  # that starts it
    version: tuple[int, ...]
    markers: Mapping[str, str]  # PEP 508's environment


def bring_code(host: Host, cache: str, python: str, say: Say) -> str:
    """Our packages' sources on the device; returns the folder for PYTHONPATH."""
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "code.zip"
        pack_code(packed)
        file = describe(packed)
        code = f"{cache}/code/{file.sha256[:16]}"
        if _is_there(host, f"{code}/{_CODE}"):
            return code
        zipped = f"{code}.zip"
        push_file(host, packed, zipped, file, say)
    host.files.remove(f"{code}.part")
    unpack = [python, "-P", "-m", "zipfile", "-e", zipped, f"{code}.part"]
    host.run(unpack, deadline_s=host.timeouts.command_s).checked("unpacking our code")
    host.files.replace(f"{code}.part", code)
    return code


def pack_code(target: Path) -> None:
    """The modules that an agent needs in one zip, byte for byte the same for the same sources."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for path in sorted(_code()):
            entry = zipfile.ZipInfo(path.relative_to(SOURCE).as_posix(), (1980, 1, 1, 0, 0, 0))
            out.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def _code() -> Iterator[Path]:
    for path in (SOURCE / name for name in CODE):
        found = path.rglob("*.py") if path.is_dir() else [path]
        yield from (each for each in found if not each.is_relative_to(SOURCE / NOT_CODE))


def bring_venv(
    host: Host, cache: str, extra: str, wheelhouse: Path | None, say: Say, *, system: System, python: Python
) -> str:
    """A virtual environment with what the extra brings; returns its Python. It is made by `python`. `wheelhouse`:
    wheels are taken only from there."""
    wanted = requirements(extra, python.markers)
    if wheelhouse is not None and not any(wheelhouse.glob(f"{_GRAMMAR_NEEDS}-*.whl")):
        say(f"{wheelhouse} has no wheel of {_GRAMMAR_NEEDS}: the device does without json_schema, regex and lark")
        wanted = [each for each in wanted if not each.startswith(_GRAMMAR_NEEDS)]
    venv = f"{cache}/venv/{hashlib.sha256(chr(10).join(wanted).encode()).hexdigest()[:16]}"
    inside = f"{venv}/{system.python_in_venv}"
    if _is_there(host, f"{venv}/{_READY}"):
        return inside
    pip, where = [inside, "-P", "-m", "pip"], _INDEXES.get(extra, ())
    if wheelhouse is not None:
        pip = [inside, "-P", "-c", _PIP_WITHOUT_SETTINGS, "--isolated"]
        where = ["--no-index", "--find-links", _bring_wheels(host, cache, wheelhouse, say)]
    say("making a virtual environment")
    host.files.remove(venv)
    limit_s = host.timeouts.install_s
    made = host.run([python.command, "-P", "-m", "venv", venv], deadline_s=limit_s)
    if made.exit_code != 0:
        raise TransportError(
            f"{python.command} -m venv failed on the device; {system.venv_fix}",
            exit_code=made.exit_code,
            last_lines=last_lines(made.stdout + made.stderr),
        )
    say(f"installing {', '.join(wanted)}")
    # Not compiled: the agent imports a tenth of it, and Python compiles that at the first start.
    pip += ["install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--no-compile", *where]
    alone = [each for each in wanted if each.startswith(_ALONE)]
    host.run([*pip, *(each for each in wanted if each not in alone)], deadline_s=limit_s).checked("pip install")
    if alone:
        host.run([*pip, "--no-deps", *alone], deadline_s=limit_s).checked("pip install")
    with tempfile.NamedTemporaryFile() as nothing:
        host.push(Path(nothing.name), f"{venv}/{_READY}", deadline_s=host.timeouts.command_s)
    return inside


def look_at_python(host: Host, python: str, system: System = POSIX) -> Python:
    """Raises DeviceError for a missing or too old interpreter."""
    # -I, because a Python that is too old for us does not know -P.
    done = host.run([python, "-I", "-c", _LOOK], deadline_s=host.timeouts.command_s)
    if done.exit_code != 0:
        raise DeviceError(
            f"the device has no working {python} ({' '.join(last_lines(done.stderr)[-1:])}); install it "
            f"({system.python_fix}), or set `python` in lab.toml"
        )
    try:
        version, markers = parse_json(done.stdout)
        _check_look(version, markers)
    except (TypeError, ValueError):
        raise DeviceError(
            f"{python} on the device answered {done.stdout[:60]!r}; {SILENT_SHELL}; or name a Python in lab.toml"
        ) from None
    if tuple(version) < OLDEST:
        raise DeviceError(
            f"{python} on the device is {'.'.join(map(str, version))}; needed is {'.'.join(map(str, OLDEST))} or "
            f"newer: {system.newer_fix}, or set `python` in lab.toml"
        )
    return Python(command=python, version=tuple(version), markers=markers)


def _check_look(version: object, markers: object) -> None:
    numbers = isinstance(version, list) and len(version) == 3 and all(type(each) is int for each in version)
    texts = isinstance(markers, dict) and all(isinstance(each, str) for each in markers.values())
    if not numbers or not texts:
        raise ValueError("neither a version nor markers")


def requirements(extra: str, markers: Mapping[str, str]) -> list[str]:
    """What an agent needs on a device with these markers, of our own requirements and the extra's; pip takes it."""
    return sorted({f"{each.name}{each.specifier}" for each in _declared(extra, markers)})


def _declared(extra: str, markers: Mapping[str, str]) -> Iterator[Requirement]:
    project = SOURCE / "pyproject.toml"
    if project.is_file():  # a checkout, whose installed metadata may be older than itself
        content = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        own = [Requirement(line) for line in content["dependencies"]]
        added = [Requirement(line) for name in (extra, _GRAMMAR) for line in content["optional-dependencies"][name]]
    else:  # METADATA has both in one list, where an extra is a marker
        lines = [Requirement(line) for line in importlib.metadata.requires("phi-edge") or []]
        own = [each for each in lines if _applies(each, markers)]
        added = [each for each in lines if not _applies(each, markers)]
    yield from (each for each in own if each.name in AGENT_NEEDS and _applies(each, markers))
    for name in (extra, _GRAMMAR):
        yield from (each for each in added if _applies(each, {**markers, "extra": name}))


def _applies(requirement: Requirement, markers: Mapping[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": "", **markers})


def _bring_wheels(host: Host, cache: str, wheelhouse: Path, say: Say) -> str:
    wheels: Sequence[Path] = sorted(wheelhouse.glob("*.whl"))
    if not wheels:
        raise DeviceError(f"{wheelhouse}: has no wheels; fill it with `pip download --platform … -d {wheelhouse}`")
    folder = f"{cache}/wheels"
    for wheel in wheels:
        file, remote = describe(wheel), f"{folder}/{wheel.name}"
        limit_s = host.timeouts.transfer_s(file.bytes)
        if not _is_there(host, remote) or host.files.sha256(remote, deadline_s=limit_s) != file.sha256:
            push_file(host, wheel, remote, file, say)
    return folder


def _is_there(host: Host, path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return host.files.exist(folder, [name])[0]
