"""`phi-edge history`: what was measured over many nights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phi_edge.files import FILE, check_writable, write_text
from phi_edge.terminal import echo
from phi_edge.verb import Verb
from runtimes.terminal import one_line

if TYPE_CHECKING:
    from devices.history.figures import FileFigures

_OVERVIEW = """SELECT artifact, device, prompt_tokens AS prompt, metric, count(*) AS nights, min(created_at) AS "first",
max(created_at) AS "last", arg_max(value, created_at) AS value, (SELECT printf('%+.1f%% since %s',
arg_max(100 * ratio - 100, c.created_at), max(c.created_at)[:10]) FROM changes c WHERE c.artifact = m.artifact
AND c.device = m.device AND c.metric = m.metric AND c.prompt_tokens IS NOT DISTINCT FROM m.prompt_tokens
HAVING count(*) > 0) AS change FROM metrics m WHERE valid GROUP BY ALL ORDER BY ALL"""


@click.command(
    "history",
    cls=Verb,
    examples=[
        "phi-edge history all-nights night",
        "phi-edge history all-nights --html lab.html",
        "phi-edge history all-nights --parquet all.parquet",
        "phi-edge history all-nights --sql \"SELECT created_at, value FROM metrics WHERE metric = 'ttft_s'\"",
    ],
    extra="history",
)
@click.argument("store", type=FILE)
@click.argument("files", nargs=-1, type=FILE)
@click.option("--html", "html_out", type=FILE, metavar="FILE", show_default="no page",
              help="Write the dashboard: one self-contained page.")  # fmt: skip
@click.option("--title", metavar="TEXT", default="Phi Edge lab", help="The dashboard's title.")
@click.option("--prometheus", "prometheus_out", type=FILE, metavar="FILE", show_default="no file",
              help="Write the newest figures for node_exporter's textfile collector.")  # fmt: skip
@click.option("--csv", "csv_out", type=FILE, metavar="FILE", show_default="no file",
              help="Write all figures as CSV.")  # fmt: skip
@click.option("--parquet", "parquet_out", type=FILE, metavar="FILE", show_default="no file",
              help="Write all figures as Parquet.")  # fmt: skip
@click.option("--sql", metavar="QUERY", show_default="an overview, if nothing else is asked for",
              help="Print the answer to a query of DuckDB; its table is `metrics`.")  # fmt: skip
def history_command(
    store: Path,
    files: tuple[Path, ...],
    html_out: Path | None,
    title: str,
    prometheus_out: Path | None,
    csv_out: Path | None,
    parquet_out: Path | None,
    sql: str | None,
) -> None:
    """Add FILES to STORE, a folder that only grows, and show the figures of everything in it.

    FILES are what `phi-edge bench`, `lab run` and `score` wrote, or folders of them; STORE keeps a copy of each. What
    is there already is not added again.
    """
    from devices.history.figures import read_figures
    from devices.history.store import HistoryStore
    from devices.judge.matched import files_of

    tables = {"csv": csv_out, "parquet": parquet_out}
    for out in (html_out, prometheus_out, *tables.values()):
        if out is not None:
            check_writable(out, files)
    history = HistoryStore(store, write_text)
    paths = files_of(files)
    if paths:
        added = history.add(paths)
        echo(f"{added} of {len(paths)} files are new in {store}", err=True)
    figures = read_figures(store, history.files(), say=functools.partial(echo, err=True))
    if html_out is not None:
        from devices.dashboard.page import to_page

        write_text(html_out, to_page(figures, title))
    if prometheus_out is not None:
        from devices.history.prometheus import to_prometheus

        write_text(prometheus_out, to_prometheus(figures))
    asked = sql is not None or not (paths or html_out or prometheus_out or any(tables.values()))
    if asked or any(tables.values()):
        _ask(figures, tables, (sql or _OVERVIEW) if asked else None)


def _ask(figures: Sequence[FileFigures], tables: Mapping[str, Path | None], sql: str | None) -> None:
    """What DuckDB does: files of all figures, and the answer to a query."""
    from devices.history.table import History

    with contextlib.closing(History(figures)) as table:
        for form, out in tables.items():
            if out is not None:
                table.write(out, form)
        if sql is not None:
            echo(_shown(*table.ask(sql)))


def _shown(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    from devices.report.figures import figures_table

    def shown(cell: object) -> str:
        if cell is None:
            return "-"
        return f"{cell:.6g}" if isinstance(cell, float) else one_line(str(cell))

    cells = [[shown(cell) for cell in row] for row in rows]
    return figures_table([list(names), *cells], left=range(len(names)))
