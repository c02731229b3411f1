"""Files that a verb writes: refused before the work where they cannot be written, and never half-written."""

from __future__ import annotations

from pathlib import Path

import click

from devices.errors import DeviceError

FILE = click.Path(path_type=Path)


def check_writable(out: Path) -> None:
    """Say now, not after minutes of work, that the file cannot be written."""
    if not out.parent.is_dir():
        raise DeviceError(f"{out}: its folder does not exist; make it first")
    if out.is_dir():
        raise DeviceError(f"{out}: is a folder; give a file")


def write_text(out: Path, text: str) -> None:
    if str(out) == "-":
        click.echo(text, nl=False)
        return
    check_writable(out)
    part = out.with_name(f".{out.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(out)
