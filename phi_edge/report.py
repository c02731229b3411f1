"""`phi-edge report`."""

from __future__ import annotations

from pathlib import Path

import click

from devices.errors import DeviceError
from phi_edge.files import FILE, check_writable, write_text


@click.command("report")
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--html", "html_out", type=FILE, default=None, help="Write one self-contained page with plots.")
@click.option("--markdown", is_flag=True, help="Print a table for GitHub (also when nothing else is asked for).")
@click.option("--json", "json_out", type=FILE, default=None, help="Write the same numbers for a script; - prints them.")
def report_command(files: tuple[Path, ...], html_out: Path | None, markdown: bool, json_out: Path | None) -> None:
    """Show measurement FILES side by side. Ratios are to the first."""
    from devices.measure.measurement import read_measurement
    from devices.report.table import make_columns, to_json, to_markdown

    columns = make_columns([read_measurement(file) for file in files])
    if html_out is not None:
        check_writable(html_out)
        try:
            from devices.report.page import to_html
        except ModuleNotFoundError as missing:
            if missing.name != "matplotlib":
                raise
            raise DeviceError(
                "--html needs matplotlib, which is not installed: pip install 'phi-edge[report]'"
            ) from None
        write_text(html_out, to_html(columns))
    if json_out is not None:
        write_text(json_out, to_json(columns))
    if markdown or (html_out is None and json_out is None):
        click.echo(to_markdown(columns), nl=False)
