"""`phi-edge lab run`: every artifact of a plan on every device, to the end."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from devices.errors import DeviceError
from phi_edge.files import FILE, make_folder, write_text
from phi_edge.lab import Wait, lab_option
from phi_edge.progress import board
from phi_edge.terminal import echo
from phi_edge.verb import Verb
from runtimes.terminal import one_line

if TYPE_CHECKING:
    from devices.jobs.cell import Row

LOCK = ".lab-run.lock"
CELLS = "cells.json"


@click.command(
    "lab run",
    cls=Verb,
    examples=[
        "phi-edge lab run night.toml --out-dir night",
        "phi-edge lab run night.toml --out-dir night --wait-s 600",
    ],
)
@click.argument("plan", type=FILE)
@click.option("--out-dir", type=FILE, metavar="FOLDER", required=True,
              help="The folder for everything that comes of it; it is made.")  # fmt: skip
@lab_option
@click.option("--wait-s", type=Wait(), metavar="SECONDS", show_default="as long as it takes",
              help="How long to wait for a device that another job uses.")  # fmt: skip
def lab_run_command(plan: Path, out_dir: Path, lab: Path | None, wait_s: float | None) -> None:
    """Measure every artifact of PLAN on each of its devices with each of its workloads.

    Devices work side by side, each on one cell after the other. Every finished repetition is stored at once: the same
    command goes on where a killed one was. A device that does not answer is tried again and then left alone, and the
    others are measured all the same; a cell that was not measured is a row with its reason, and the exit code is 2.
    """
    from devices.drivers.table import open_lab
    from devices.jobs.plan import read_plan
    from devices.jobs.run import Setting, run_job

    the_lab = open_lab(lab)
    job = read_plan(plan, the_lab)
    make_folder(out_dir)
    saving = threading.Lock()

    def save(row: Row) -> None:
        out = out_dir / f"{row.cell.name}.json"
        assert row.measurement is not None
        with saving:
            if not out.exists():  # a finished cell of an earlier run
                write_text(out, row.measurement.to_json())

    with _only_here(out_dir), board([cell.name for cell in job.cells]) as shown:
        setting = Setting(
            lab=the_lab,
            folder=out_dir,
            tell=lambda cell, text: shown(cell.name, text),
            save=save,
            wait_s=math.inf if wait_s is None else wait_s,
        )
        rows = run_job(job, setting)
    write_text(out_dir / CELLS, _cells_json(rows))
    echo(_table(rows, job.metrics))
    missing = [row for row in rows if row.measurement is None]
    if missing:
        raise DeviceError(f"{len(missing)} of {len(rows)} cells were not measured; the table says why")


@contextlib.contextmanager
def _only_here(folder: Path) -> Iterator[None]:
    """No second job may write into the same folder. Raises DeviceError. Windows has no such lock."""
    with (folder / LOCK).open("a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except BlockingIOError as error:
            raise DeviceError(f"{folder}: another `lab run` writes into it; wait for it, or give another") from error
        yield


def _cells_json(rows: Sequence[Row]) -> str:
    """Every cell with its state, for scripts."""
    from devices.measure.contender import name_of

    content = [
        {
            "artifact": name_of(row.cell.artifact),
            "device": row.cell.device,
            "prompt_tokens": row.cell.plan.prompt_tokens,
            "generate_tokens": row.cell.plan.generate_tokens,
            "state": row.state,
            "reason": row.reason,
            "file": f"{row.cell.name}.json" if row.measurement is not None else None,
        }
        for row in rows
    ]
    return json.dumps({"schema": 1, "cells": content}, indent=2) + "\n"


def _table(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    from devices.measure.contender import name_of
    from devices.measure.metrics import METRICS
    from devices.measure.result import Result
    from devices.report.figures import MAIN, figures_table
    from devices.report.numbers import show

    names = list(metrics) or list(MAIN)
    lines = [["artifact", "device", "workload", "state", *(MAIN.get(name, name) for name in names)]]
    for row in rows:
        plan, figures = row.cell.plan, ["-"] * len(names)
        if row.measurement is not None:
            summaries = [Result(row.measurement, None).summary(METRICS[name]) for name in names]
            figures = [
                show(summary.value if summary else None, METRICS[name].unit)
                for name, summary in zip(names, summaries, strict=True)
            ]
        workload = f"{plan.prompt_tokens}+{plan.generate_tokens}"
        lines.append([name_of(row.cell.artifact), row.cell.device, workload, row.state, *figures])
    reasons = [f"{row.cell.name}: {row.state}: {one_line(row.reason)}" for row in rows if row.reason]
    return "\n".join([figures_table(lines, left=range(4)), *reasons])
