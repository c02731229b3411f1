"""Progress of long work on stderr: a bar on a terminal, silence where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
