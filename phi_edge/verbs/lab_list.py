"""`phi-edge lab list`: what is in the lab, and who uses it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phi_edge.errors import UserError
from phi_edge.files import FILE
from phi_edge.terminal import echo
from phi_edge.verb import Verb
from runtimes.terminal import one_line

if TYPE_CHECKING:
    from devices.inventory import Entry


@click.command("lab list", cls=Verb, examples=["phi-edge lab list", "phi-edge lab list night/lab.toml --json"])
@click.argument("lab", required=False, type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each device.")
def lab_list_command(lab: Path | None, as_json: bool) -> None:
    """Show every device of LAB, and phones that it lacks: state, model, memory, system, and the job that uses it.

    LAB is a lab file; without it, lab.toml of this folder, if there is one. All devices are asked at the same time.
    """
    from devices.drivers.table import open_lab
    from devices.inventory import take_inventory

    if lab is not None and not lab.is_file():
        what = "is a folder" if lab.is_dir() else "no such file"
        raise UserError(
            f"{one_line(str(lab))}: {what}; give a lab file; one device is examined by phi-edge doctor NAME"
        )
    entries = take_inventory(open_lab(lab))
    if as_json:
        for entry in entries:
            echo(json.dumps(dataclasses.asdict(entry)))
        return
    echo(to_text(entries))


def to_text(entries: Sequence[Entry]) -> str:
    """A table; below it, who uses what, and what to do about the others."""
    from devices.report.figures import figures_table
    from runtimes.system.size import size_text

    rows, notes = [["device", "transport", "state", "memory", "serial", "model", "system"]], []
    for entry in entries:
        identity, name = entry.identity, entry.name or "(not in the lab file)"
        memory = size_text(identity.memory_bytes) if identity and identity.memory_bytes else "-"
        facts = [identity.serial, identity.model, identity.system] if identity else [None] * 3
        rows.append([name, entry.transport, entry.state, memory, *(one_line(fact or "-") for fact in facts)])
        notes += [f"{name}: used by {one_line(entry.in_use_by)}"] if entry.in_use_by else []
        notes += [f"{name}: {one_line(entry.note)}"] if entry.note else []
    return "\n".join([figures_table(rows, left=range(7)), *notes])
