"""`phi-edge doctor [DEVICE]`: what is missing or wrong here and on a device, each with the command that mends it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import click

from devices.driver import Finding, worst
from devices.drivers import find_device, open_driver
from devices.examination import judge_conditions
from devices.lab import Device, LocalDevice
from devices.provision import OLDEST
from runtimes.conditions import read_conditions

_SIGNS = {"ok": "ok     ", "warning": "warning", "wrong": "WRONG  "}
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


@click.command("doctor")
@click.argument("device", required=False)
@click.option(
    "--lab", type=click.Path(path_type=Path), help="The lab file; lab.toml of this folder where there is one."
)
def doctor_command(device: str | None, lab: Path | None) -> None:
    """Say what is missing or wrong on this machine and on DEVICE, and how to mend it. Exit 0: nothing is; 1: something.

    A warning mends nothing urgent and leaves the exit code 0.
    """
    row = LocalDevice() if device is None else find_device(device, lab)
    findings = list(_print("this machine", examine_host(row)))
    if device is not None and row.transport != "local":
        with contextlib.closing(open_driver(device, row)) as driver:
            findings += _print(device, driver.examine())
    if worst(findings) == "wrong":
        sys.exit(1)


def examine_host(device: Device) -> Iterator[Finding]:
    """What this machine has; wrong is only what the device at hand needs."""
    version = platform.python_version_tuple()[:2]
    fits = tuple(map(int, version)) >= OLDEST
    yield Finding(
        what="python",
        state="ok" if fits else "wrong",
        seen=platform.python_version(),
        mend=None if fits else f"install Python {'.'.join(map(str, OLDEST))} or newer",
    )
    for name, (purpose, extra) in LIBRARIES.items():
        yield _library(name, purpose, extra)
    for name, (purpose, mend) in PROGRAMS.items():
        yield _program(name, purpose, mend, needed=device.transport == name)
    if device.transport == "local":
        yield from judge_conditions(read_conditions())


def _library(name: str, purpose: str, extra: str) -> Finding:
    try:
        return Finding(what=name, state="ok", seen=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        mend = f"pip install 'phi-edge[{extra}]'"
        return Finding(what=name, state="warning", seen=f"missing; needed for {purpose}", mend=mend)


def _program(name: str, purpose: str, mend: str, *, needed: bool) -> Finding:
    path = shutil.which(name)
    state: Literal["warning", "wrong"] = "wrong" if needed else "warning"
    if path is None:
        return Finding(what=name, state=state, seen=f"missing; needed for {purpose}", mend=mend)
    try:
        done = subprocess.run(
            [path, "-V" if name == "ssh" else "version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(what=name, state=state, seen=f"{path}: {error}", mend=mend)
    return Finding(what=name, state="ok", seen=(done.stdout or done.stderr).strip().splitlines()[0])


def _print(title: str, findings: Iterator[Finding]) -> Sequence[Finding]:
    click.echo(f"{title}:")
    kept = []
    for finding in findings:
        kept.append(finding)
        click.echo(f"  {_SIGNS[finding.state]}  {finding.what}: {finding.seen}")
        if finding.mend is not None:
            click.echo(f"           -> {finding.mend}")
    return kept
