"""`phi-edge report`: measurements for people."""

from __future__ import annotations

from pathlib import Path

import click

from phi_edge.files import FILE, check_writable, write_text
from phi_edge.terminal import echo
from phi_edge.verb import Verb


@click.command(
    "report",
    cls=Verb,
    examples=[
        "phi-edge report phone.json --html phone.html",
        "phi-edge report before.json after.json before.score.json after.score.json --markdown",
    ],
    extra="report",
)
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--html", "html_out", type=FILE, metavar="FILE", show_default="no page",
              help="Write one self-contained page with plots.")  # fmt: skip
@click.option("--markdown", is_flag=True, show_default="if neither --html nor --json is given",
              help="Print a table in GitHub's Markdown.")  # fmt: skip
@click.option("--json", "json_out", type=FILE, metavar="FILE", show_default="no file",
              help="Write the same numbers for a script; - prints them.")  # fmt: skip
def report_command(files: tuple[Path, ...], html_out: Path | None, markdown: bool, json_out: Path | None) -> None:
    """Show FILES side by side: speed, memory, size, quality.

    FILES are what `phi-edge bench` and `phi-edge score` wrote; a score belongs to the measurements of its artifact.
    Ratios compare each with the first.
    """
    from devices.measure.result import read_results
    from devices.report.table import make_columns, to_json, to_markdown

    for out in (html_out, json_out):
        if out is not None:
            check_writable(out, files)
    columns = make_columns(read_results(files))
    if html_out is not None:
        from devices.report.page import to_html

        write_text(html_out, to_html(columns))
    if json_out is not None:
        write_text(json_out, to_json(columns))
    if markdown or (html_out is None and json_out is None):
        echo(to_markdown(columns), nl=False)
