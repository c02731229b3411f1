"""Progress of long work on stderr: a bar on a terminal, plain lines or nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.pipeline import Progress


@contextmanager
def steps(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A function to call with how many of `total` steps are done and what is being done now."""
    if not sys.stderr.isatty():
        yield lambda done, doing: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.fields[title]}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        refresh_per_second=2,  # drawing takes time from what is measured on the same cores
    )
    with bar:
        task = bar.add_task("", total=total, title=title)

        def step(done: int, doing: str) -> None:
            bar.update(task, completed=done, description=doing)

        yield step


@contextmanager
def export_progress(quiet: bool) -> Iterator[Progress]:
    """What an export reports to: a line for each step, and on a terminal a bar while the weights are read."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    from export.pipeline import Progress

    class Shown(Progress):
        def __init__(self, bars: Bars) -> None:
            self.bars = bars
            self.task: TaskID | None = None

        def step(self, what: str) -> None:
            self.bars.console.print(f"[dim]{what}[/dim]")

        def weights(self, total_bytes: int) -> None:
            self.task = self.bars.add_task("weights", total=total_bytes, tensor="")

        def read(self, name: str, count: int) -> None:
            if self.task is not None:
                self.bars.update(self.task, advance=count, tensor=name)

    columns = (
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[tensor]}"),
    )
    console = Console(stderr=True, quiet=quiet)
    with Bars(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        yield Shown(bars)
