"""What `phi-edge doctor` checks on a board behind ssh: one finding each, with the command that fixes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from devices.drivers.board import Board, PythonBoardDriver
from devices.drivers.driver import Finding
from devices.drivers.provision import OLDEST
from devices.errors import DeviceError
from devices.measure import throttling
from devices.transports.ssh_wire import SSH_FAILED
from runtimes.errors import RuntimesError, TransportError
from runtimes.system.conditions import Conditions

GLIBC = (2, 28)  # of the engines' wheels: manylinux_2_28
ROOM_BYTES = 4_000_000_000  # for an engine and a Phi-3-mini in int4
SHELL_SIGNAL = 128  # a shell's exit code for a program that signal N ended is this and N
ODD = 'it\'s "$HOME" `id` \\ *\n;&|<>'  # must come back as it was sent
# Each runs on the device by itself, in any Python 3, and prints one JSON object.
_SYSTEM_PROBE = """
import json, platform, struct
print(json.dumps({"machine": platform.machine(), "glibc": platform.libc_ver()[1], "bits": 8 * struct.calcsize("P")}))
"""
_ENGINE_PROBE = """
import json, os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
def version(name):
    try:
        return __import__(name).__version__
    except ImportError as error:
        return "missing: %s" % error
print(json.dumps({"numpy": version("numpy"), "onnxruntime": version("onnxruntime")}))
"""


@dataclass(frozen=True)
class SystemFacts:
    """What the first probe prints."""

    machine: str
    glibc: str
    bits: int


@dataclass(frozen=True)
class EngineFacts:
    """What the second probe prints."""

    numpy: str
    onnxruntime: str


def examine_board(driver: PythonBoardDriver) -> Iterator[Finding]:
    """A board that cannot be reached is a finding, not an error."""
    board = driver.board
    try:
        echoed = board.host.run(["printf", "%s", ODD], deadline_s=board.host.timeouts.command_s)
    except TransportError as error:
        hint = " ".join(error.last_lines) or error.message
        fix = f"make `ssh {board.address} true` work without a password: the address, `ssh-copy-id {board.address}`"
        yield Finding(what="reachable", state="wrong", seen=hint, fix=fix)
        return
    yield Finding(what="reachable", state="ok", seen=f"ssh {board.address}")
    if echoed.stdout != ODD.encode():
        seen = f"a test text came back as {echoed.stdout[:60]!r}"
        fix = "make the login shell a POSIX shell that prints nothing at its start: chsh -s /bin/bash"
        yield Finding(what="shell", state="wrong", seen=seen, fix=fix)
        return
    try:
        version = driver.python().version
    except (DeviceError, RuntimesError) as error:
        yield Finding(what="python", state="wrong", seen=" ".join(str(error).splitlines()), fix=_PYTHON_FIX)
        return
    yield Finding(what="python", state="ok", seen=f"{board.starter} {'.'.join(map(str, version))}")
    try:
        yield from _software(board)
        folder = driver.cache_folder()
        yield disk(folder, board.host.files.free_bytes(folder), f"rm -r {folder}/artifacts/*")
        yield from judge_conditions(driver.look())
        yield judge_energy(driver.energy_source)
    except RuntimesError as error:
        fix = f"check the folder {board.cache} on the device, or set `cache` in lab.toml"
        yield Finding(what="cache", state="wrong", seen=" ".join(str(error).splitlines()), fix=fix)


def judge_conditions(seen: Conditions) -> Iterator[Finding]:
    """Memory, swap, throttling, heat, governor. No finding for what the device cannot report."""
    yield from judge_memory(seen)
    if seen.swap_devices:
        zram = any("zram" in name for name in seen.swap_devices)
        kind = "compressed memory (zram)" if zram else "a disk"
        yield Finding(what="swap", state="ok", seen=f"{(seen.swap_total_bytes or 0) / 1e9:.1f} GB on {kind}")
    if seen.throttled is not None:
        yield from _throttling(seen.throttled)
    elif (seen.cpu_model or "").startswith("Raspberry Pi"):
        fix = "sudo usermod -aG video $USER on the board, then log in again; or sudo apt-get install raspi-utils"
        yield Finding(what="throttling", state="warning", seen="vcgencmd does not report it", fix=fix)
    if seen.temperature_c and (hottest := max(seen.temperature_c.values())) >= 75:
        yield Finding(what="temperature", state="warning", seen=f"{hottest:.0f} °C", fix="cool it: a fan, a heat sink")
    if seen.governor is not None:
        slow = seen.governor == "powersave"
        set_it = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        yield Finding(
            what="governor", state="warning" if slow else "ok", seen=seen.governor, fix=set_it if slow else None
        )


def judge_energy(source: str | None) -> Finding:
    """What tells how much energy the device uses; most need a meter beside them, so its absence is no warning."""
    seen = source or "not measured: nothing here can tell it, or it is charging; `meter` in lab.toml names a meter"
    return Finding(what="energy", state="ok", seen=seen)


def judge_memory(seen: Conditions) -> Iterator[Finding]:
    """Is enough memory available for a small Phi-3?"""
    if seen.memory_total_bytes is not None and seen.memory_available_bytes is not None:
        free, total = seen.memory_available_bytes / 1e9, seen.memory_total_bytes / 1e9
        enough = seen.memory_available_bytes >= 3_000_000_000
        yield Finding(
            what="memory",
            state="ok" if enough else "warning",
            seen=f"{free:.1f} of {total:.1f} GB available",
            fix=None if enough else "close other programs; Phi-3-mini in int4 takes about 3 GB with a small context",
        )


def _software(board: Board) -> Iterator[Finding]:
    limit_s = board.host.timeouts.command_s
    done = board.host.run([board.starter, "-P", "-c", _SYSTEM_PROBE], deadline_s=limit_s)
    facts = done.facts(SystemFacts, "looking at the device's system")
    glibc = tuple(int(word) for word in facts.glibc.split(".") if re.fullmatch("[0-9]{1,6}", word))
    fix = None
    if facts.bits != 64:
        fix = "install the 64-bit system: the engines have no wheels for a 32-bit Python"
    elif glibc and glibc < GLIBC:
        fix = f"glibc {'.'.join(map(str, GLIBC))} or newer: Raspberry Pi OS Bookworm or newer"
    bits = "" if facts.bits == 64 else f"a {facts.bits}-bit Python, "
    seen = f"{facts.machine}, {bits}glibc {facts.glibc or 'unknown'}"
    yield Finding(what="system", state="wrong" if fix else "ok", seen=seen, fix=fix)
    done = board.host.run([board.starter, "-P", "-c", _ENGINE_PROBE], deadline_s=limit_s)
    if done.exit_code == SSH_FAILED or done.exit_code > SHELL_SIGNAL:
        yield _died(board)
        return
    engine = done.facts(EngineFacts, "looking at the device's engine").onnxruntime
    if not engine.startswith("missing"):
        yield Finding(what="onnxruntime", state="ok", seen=engine)
    elif board.python is not None:
        fix = f"{board.python} -m pip install 'onnxruntime>=1.31' numpy"
        yield Finding(what="onnxruntime", state="wrong", seen=engine, fix=fix)
    else:
        seen = "not in the system's Python: the first run makes an environment with it"
        yield Finding(what="onnxruntime", state="ok", seen=seen)


def _died(board: Board) -> Finding:
    return Finding(
        what="onnxruntime",
        state="wrong",
        seen="a signal ends Python when it imports numpy and onnxruntime, as at an unknown instruction",
        fix="the wheels may be for newer processors (a Raspberry Pi 4 lacks what a 5 has): try another version, "
        f"{board.starter} -m pip install --force-reinstall 'onnxruntime>=1.31' numpy, or use a Raspberry Pi 5",
    )


def disk(folder: str, free: int | None, fix: str) -> Finding:
    """Room for an engine and a model. `fix` makes some."""
    if free is None:
        return Finding(what="disk", state="warning", seen=f"df {folder} gives no answer", fix=f"df -P {folder}")
    enough = free >= ROOM_BYTES
    return Finding(
        what="disk",
        state="ok" if enough else "warning",
        seen=f"{free / 1e9:.1f} GB free at {folder}",
        fix=None if enough else f"remove old artifacts: {fix}",
    )


def _throttling(bits: int) -> Iterator[Finding]:
    now, before = throttling.now(bits), throttling.since_boot(bits)
    if now:
        yield Finding(what="throttling", state="wrong", seen=f"now: {'; '.join(now)}", fix="do that, then try again")
    elif before:
        fix = "if it returns under load, do what it says; a restart clears the record"
        yield Finding(what="throttling", state="warning", seen=f"since its start: {'; '.join(before)}", fix=fix)
    else:
        yield Finding(what="throttling", state="ok", seen="none since its start")


_PYTHON_FIX = (
    f"sudo apt-get install python3 python3-venv ({'.'.join(map(str, OLDEST))} or newer), or `python` in lab.toml"
)
