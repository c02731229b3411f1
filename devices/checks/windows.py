"""What `phi-edge doctor` checks on a Windows machine behind ssh: one finding each, with the command that fixes it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from devices.checks.board import ODD, disk, judge_conditions
from devices.drivers.board import Board, PythonBoardDriver
from devices.drivers.driver import Finding
from devices.drivers.provision import OLDEST, WINDOWS
from devices.errors import DeviceError
from devices.transports.windows.host import WindowsHost
from runtimes.engines.directml import STACKS, choose_adapter, choose_stack
from runtimes.engines.engine import Graphics
from runtimes.errors import EngineError, RuntimesError, TransportError
from runtimes.system.windows.dxgi import Adapter

OLDEST_BUILD = 18362  # Windows 10, version 1903: DirectML's first
_DEFAULT_SHELL = (
    "in an administrator's PowerShell there: New-ItemProperty -Path HKLM:\\SOFTWARE\\OpenSSH -Name DefaultShell "
    "-Value C:\\Windows\\System32\\cmd.exe -PropertyType String -Force"
)
# Runs on the device by itself, in any Python 3; prints one JSON object.
_PROBE = """
import json, platform, struct, sys
print(json.dumps({"bits": 8 * struct.calcsize("P"), "machine": platform.machine(), "version": platform.version(),
                  "echo": sys.argv[1]}))
"""


@dataclass(frozen=True)
class PythonFacts:
    """What the probe prints."""

    bits: int
    machine: str
    version: str
    echo: str


@dataclass(frozen=True)
class GraphicsFacts:
    """What `python -m runtimes.engines.directml` prints."""

    distributions: Mapping[str, str]
    adapters: Sequence[Adapter]


def examine_windows(driver: PythonBoardDriver, host: WindowsHost) -> Iterator[Finding]:
    """A machine that cannot be reached is a finding, not an error. `host` is the board's."""
    board, limit_s = driver.board, host.timeouts.command_s
    try:
        shell = host.shell()
    except TransportError as error:
        fix = (
            f"make `ssh {board.address} exit` work without a password: the address; on Windows Start-Service sshd; "
            "your public key in C:\\ProgramData\\ssh\\administrators_authorized_keys for an administrator, else in "
            ".ssh\\authorized_keys"
        )
        yield Finding(what="reachable", state="wrong", seen=" ".join(error.last_lines) or error.message, fix=fix)
        return
    yield Finding(what="reachable", state="ok", seen=f"ssh {board.address}")
    yield _shell(shell)
    if shell == "other":
        return
    try:
        version = driver.python().version
        probe = [board.starter, "-P", "-c", _PROBE, ODD]
        facts = host.run(probe, deadline_s=limit_s).facts(PythonFacts, "looking at the device's Python")
    except (DeviceError, RuntimesError) as error:
        fix = f"{WINDOWS.python_fix} ({'.'.join(map(str, OLDEST))} or newer), or `launcher` in lab.toml"
        yield Finding(what="python", state="wrong", seen=" ".join(str(error).splitlines()), fix=fix)
        return
    yield from _python(board.starter, version, facts)
    try:
        folder = driver.cache_folder()
        old = f"{folder}/artifacts".replace("/", "\\")
        yield disk(folder, host.files.free_bytes(folder), f'rmdir /s "{old}"')
        yield from judge_conditions(driver.look())
        looked = host.run(driver.our_python("runtimes.engines.directml"), deadline_s=limit_s)
        graphics = looked.facts(GraphicsFacts, "looking at the graphics adapters")
    except RuntimesError as error:
        fix = f"check the folder {board.cache} on the device, or set `cache` in lab.toml"
        yield Finding(what="cache", state="wrong", seen=" ".join(str(error).splitlines()), fix=fix)
        return
    yield judge_packages(graphics.distributions, board)
    yield judge_adapters(list(graphics.adapters), board.graphics)


def judge_packages(installed: Mapping[str, str], board: Board) -> Finding:
    """Where lab.toml names an interpreter, its packages must be complete; else a venv gets them."""
    if board.python is None:
        wanted = next(stack for stack in STACKS if stack.extra == board.packages["onnx"])
        return Finding(
            what="packages",
            state="ok",
            seen=f"the first run makes an environment with {', '.join(wanted.distributions)}",
        )
    try:
        stack = choose_stack(installed)
    except EngineError as error:
        return Finding(what="packages", state="wrong", seen=error.seen, fix=f"{board.python} -m {error.fix}")
    return Finding(
        what="packages", state="ok", seen=", ".join(f"{name} {installed[name]}" for name in stack.distributions)
    )


def judge_adapters(adapters: list[Adapter], graphics: Graphics) -> Finding:
    """The one that DirectML would take."""
    try:
        chosen = choose_adapter(adapters, graphics.adapter)
    except EngineError as error:
        free = graphics.allow_cpu and graphics.adapter is None
        fix = "install the graphics card's driver; or allow_cpu = true in lab.toml, or another `adapter` there"
        return Finding(what="graphics", state="warning" if free else "wrong", seen=str(error), fix=fix)
    return Finding(what="graphics", state="ok", seen=chosen.describe())


def _shell(shell: str) -> Finding:
    if shell == "cmd":
        return Finding(what="shell", state="ok", seen="cmd.exe")
    if shell == "powershell":
        return Finding(what="shell", state="warning", seen="PowerShell, which we have not tested", fix=_DEFAULT_SHELL)
    seen = "neither cmd.exe nor PowerShell is the default shell of its sshd"
    return Finding(what="shell", state="wrong", seen=seen, fix=_DEFAULT_SHELL)


def _python(python: str, version: tuple[int, ...], facts: PythonFacts) -> Iterator[Finding]:
    wide = facts.bits == 64
    yield Finding(
        what="python",
        state="ok" if wide else "wrong",
        seen=f"{python} {'.'.join(map(str, version))}, {facts.bits} bits, {facts.machine}",
        fix=None if wide else f"{WINDOWS.python_fix} --architecture x64",
    )
    if facts.echo != ODD:
        seen = f"a test text came back as {facts.echo!r:.60}"
        yield Finding(what="words", state="wrong", seen=seen, fix="name python.exe itself, no script, as `launcher`")
    last = facts.version.rpartition(".")[2]
    build = int(last) if re.fullmatch("[0-9]{1,9}", last) else 0
    yield Finding(
        what="system",
        state="ok" if build >= OLDEST_BUILD else "wrong",
        seen=f"Windows {facts.version}",
        fix=None if build >= OLDEST_BUILD else "Windows 10, version 1903, or newer",
    )
