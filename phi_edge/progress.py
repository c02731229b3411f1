"""Progress of long work on stderr: a bar on a terminal, plain lines or nothing elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from phi_edge.terminal import echo
from runtimes.terminal import one_line

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
def board(names: Sequence[str]) -> Iterator[Callable[[str, str], None]]:
    """A function, for any thread, to call with one of the names and its state in words: a line each that is drawn again
    on a terminal, and elsewhere a line for each new state."""
    lock = threading.Lock()
    states = dict.fromkeys(names, "")
    if not sys.stderr.isatty():

        def say(name: str, state: str) -> None:
            with lock:
                head = state.partition(": ")[0].partition(" (")[0]  # "repetition 3 of 5", not each of its steps
                if states[name] != head:
                    states[name] = head
                    echo(f"{name}: {one_line(state)}", err=True)

        yield say
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def table() -> Table:
        drawn = Table.grid(padding=(0, 2))
        with lock:
            for name, state in states.items():
                drawn.add_row(Text(one_line(name)), Text(one_line(state)))
        return drawn

    with Live(get_renderable=table, console=Console(stderr=True), refresh_per_second=2):

        def tell(name: str, state: str) -> None:
            with lock:
                states[name] = state

        yield tell


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
            # A remark may quote a checkpoint's own template, brackets and all.
            self.bars.console.print(one_line(what), style="dim", markup=False, highlight=False, soft_wrap=True)

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
        TextColumn("{task.fields[tensor]}", style="dim", markup=False),
    )
    console = Console(stderr=True, quiet=quiet)
    with Bars(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        yield Shown(bars)
