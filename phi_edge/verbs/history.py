"""`phi-edge history`: what was measured over many nights."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import click

from phi_edge.files import FILE, check_writable, write_text
from phi_edge.terminal import echo
from phi_edge.verb import Verb
from runtimes.terminal import one_line

_OVERVIEW = """SELECT artifact, device, prompt_tokens AS prompt, metric, count(*) AS nights, min(created_at) AS "first",
max(created_at) AS "last", arg_max(value, created_at) AS value FROM metrics WHERE valid GROUP BY ALL ORDER BY ALL"""


@click.command(
    "history",
    cls=Verb,
    examples=[
        "phi-edge history all-nights night",
        "phi-edge history all-nights --parquet all.parquet",
        "phi-edge history all-nights --sql \"SELECT created_at, value FROM metrics WHERE metric = 'ttft_s'\"",
    ],
    extra="history",
)
@click.argument("store", type=FILE)
@click.argument("files", nargs=-1, type=FILE)
@click.option("--csv", "csv_out", type=FILE, metavar="FILE", show_default="no file",
              help="Write all figures as CSV.")  # fmt: skip
@click.option("--parquet", "parquet_out", type=FILE, metavar="FILE", show_default="no file",
              help="Write all figures as Parquet.")  # fmt: skip
@click.option("--sql", metavar="QUERY", show_default="an overview, if nothing else is asked for",
              help="Print the answer to a query of DuckDB; its table is `metrics`.")  # fmt: skip
def history_command(
    store: Path, files: tuple[Path, ...], csv_out: Path | None, parquet_out: Path | None, sql: str | None
) -> None:
    """Add FILES to STORE, a folder that only grows, and show the figures of everything in it.

    FILES are what `phi-edge bench`, `lab run` and `score` wrote, or folders of them; STORE keeps a copy of each. What
    is there already is not added again.
    """
    from devices.history.store import HistoryStore
    from devices.history.table import History
    from devices.judge.matched import files_of

    for out in (csv_out, parquet_out):
        if out is not None:
            check_writable(out)
    history = HistoryStore(store, write_text)
    paths = files_of(files)
    if paths:
        added = history.add(paths)
        echo(f"{added} of {len(paths)} files are new in {store}", err=True)
    with contextlib.closing(History(history.files())) as table:
        for out, form in ((csv_out, "csv"), (parquet_out, "parquet")):
            if out is not None:
                table.write(out, form)
        if sql is not None or (csv_out is None and parquet_out is None and not paths):
            echo(_shown(*table.ask(sql or _OVERVIEW)))


def _shown(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    from devices.report.figures import figures_table

    def shown(cell: object) -> str:
        if cell is None:
            return "-"
        return f"{cell:.6g}" if isinstance(cell, float) else one_line(str(cell))

    cells = [[shown(cell) for cell in row] for row in rows]
    return figures_table([list(names), *cells], left=range(len(names)))
