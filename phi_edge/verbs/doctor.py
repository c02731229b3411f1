"""`phi-edge doctor`: what is missing or wrong, and how to fix it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phi_edge.errors import Failed
from phi_edge.lab import DeviceName, lab_option
from phi_edge.terminal import echo
from phi_edge.verb import Verb
from runtimes.terminal import one_line

if TYPE_CHECKING:
    from devices.drivers.driver import Finding

_SIGNS = {"ok": "ok     ", "warning": "warning", "wrong": "WRONG  "}


@click.command("doctor", cls=Verb, examples=["phi-edge doctor", "phi-edge doctor pi5 --lab my-lab.toml"])
@click.argument("device", required=False, type=DeviceName())
@lab_option
def doctor_command(device: str | None, lab: Path | None) -> None:
    """List what is missing or wrong on this machine and on DEVICE.

    DEVICE is a name of the lab file; without it only this machine is examined. Each finding comes with the command that
    fixes it. Exit code 1 if something is wrong. Warnings are not urgent and do not change the exit code.
    """
    from devices.checks.doctor import examine_host
    from devices.drivers.driver import worst
    from devices.drivers.table import find_device, open_driver

    row = find_device("local" if device is None else device, lab)
    findings = list(_print("this machine", examine_host(row)))
    if device is not None and row.transport != "local":
        with contextlib.closing(open_driver(device, row)) as driver:
            findings += _print(device, driver.examine())
    if worst(findings) == "wrong":
        raise Failed("")


def _print(title: str, findings: Iterator[Finding]) -> Sequence[Finding]:
    echo(f"{title}:")
    kept = []
    for finding in findings:
        kept.append(finding)
        echo(f"  {_SIGNS[finding.state]}  {finding.what}: {one_line(finding.seen)}")
        if finding.fix is not None:
            echo(f"           -> {finding.fix}")
    return kept
