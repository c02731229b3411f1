"""What `phi-edge doctor` checks on this machine: one finding each, with the command that fixes it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator
from typing import Literal

from devices.checks.board import judge_conditions, judge_energy
from devices.drivers.driver import Finding, Program
from devices.drivers.provision import OLDEST
from devices.drivers.table import TRANSPORTS
from devices.lab import Device
from devices.transports.child import run_child
from devices.transports.timeouts import DEFAULT_TIMEOUTS
from runtimes.errors import TransportError
from runtimes.system.conditions import read_conditions
from runtimes.system.energy.sources import find_sum

# library -> what it is for, the extra that brings it
LIBRARIES = {
    "onnxruntime": ("running ONNX artifacts here", "onnx"),
    "executorch": ("running ExecuTorch artifacts here", "executorch"),
    "xllamacpp": ("running GGUF artifacts here", "gguf"),
    "transformers": ("exporting", "export"),
}


def examine_host(device: Device) -> Iterator[Finding]:
    """What this machine has; only what this device needs can be wrong."""
    version = platform.python_version_tuple()[:2]
    fits = tuple(map(int, version)) >= OLDEST
    yield Finding(
        what="python",
        state="ok" if fits else "wrong",
        seen=platform.python_version(),
        fix=None if fits else f"install Python {'.'.join(map(str, OLDEST))} or newer",
    )
    for name, (purpose, extra) in LIBRARIES.items():
        yield _library(name, purpose, extra)
    needed = TRANSPORTS[device.transport].program
    programs = {transport.program.name: transport.program for transport in TRANSPORTS.values() if transport.program}
    for program in programs.values():
        yield _program(program, needed=program == needed)
    if device.transport == "local":
        yield from judge_conditions(read_conditions())
        found = find_sum()
        yield judge_energy(None if found is None else found.source)


def _library(name: str, purpose: str, extra: str) -> Finding:
    try:
        return Finding(what=name, state="ok", seen=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        fix = f"pip install 'phi-edge[{extra}]'"
        return Finding(what=name, state="warning", seen=f"missing; needed for {purpose}", fix=fix)


def _program(program: Program, *, needed: bool) -> Finding:
    path = shutil.which(program.name)
    state: Literal["warning", "wrong"] = "wrong" if needed else "warning"
    if path is None:
        seen = f"missing; needed for {program.purpose}"
        return Finding(what=program.name, state=state, seen=seen, fix=program.fix)
    try:
        done = run_child([path, program.version], deadline_s=DEFAULT_TIMEOUTS.command_s)
    except TransportError as error:
        return Finding(what=program.name, state=state, seen=f"{path}: {error}", fix=program.fix)
    version = (done.stdout or done.stderr).decode("utf-8", "replace").strip()
    return Finding(what=program.name, state="ok", seen=version.partition("\n")[0] or f"{path}, which prints no version")
