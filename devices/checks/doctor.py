"""What `phi-edge doctor` looks at on this machine: one finding each, with the command that fixes it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Iterator
from typing import Literal

from devices.checks.board import judge_conditions
from devices.drivers.driver import Finding
from devices.drivers.provision import OLDEST
from devices.lab import Device
from runtimes.system.conditions import read_conditions

# library -> what it is for, the extra that brings it
LIBRARIES = {
    "onnxruntime": ("running ONNX artifacts here", "onnx"),
    "executorch": ("running ExecuTorch artifacts here", "executorch"),
    "transformers": ("exporting", "export"),
}
PROGRAMS = {
    "ssh": ("devices behind ssh", "sudo apt-get install openssh-client"),
    "adb": ("Android devices", "sudo apt-get install adb"),
}


def examine_host(device: Device) -> Iterator[Finding]:
    """What this machine has; wrong is only what the device at hand needs."""
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
    for name, (purpose, fix) in PROGRAMS.items():
        yield _program(name, purpose, fix, needed=device.transport == name)
    if device.transport == "local":
        yield from judge_conditions(read_conditions())


def _library(name: str, purpose: str, extra: str) -> Finding:
    try:
        return Finding(what=name, state="ok", seen=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        fix = f"pip install 'phi-edge[{extra}]'"
        return Finding(what=name, state="warning", seen=f"missing; needed for {purpose}", fix=fix)


def _program(name: str, purpose: str, fix: str, *, needed: bool) -> Finding:
    path = shutil.which(name)
    state: Literal["warning", "wrong"] = "wrong" if needed else "warning"
    if path is None:
        return Finding(what=name, state=state, seen=f"missing; needed for {purpose}", fix=fix)
    try:
        done = subprocess.run(
            [path, "-V" if name == "ssh" else "version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(what=name, state=state, seen=f"{path}: {error}", fix=fix)
    return Finding(what=name, state="ok", seen=(done.stdout or done.stderr).strip().splitlines()[0])
