"""Files that a verb writes: refused before the work if they cannot be written, and never half-written."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from devices.errors import DeviceError

FILE = click.Path(path_type=Path)


class Folder(click.Path):
    """A path of which completion offers folders alone. Whether it is one is checked by the verb's work."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The shell's own completion of folders."""
        return [CompletionItem(incomplete, type="dir")]


FOLDER = Folder(path_type=Path)


def check_writable(out: Path) -> None:
    """Refuse a file that cannot be written, before minutes of work. Raises DeviceError."""
    if not out.parent.is_dir():
        raise DeviceError(f"{out}: its folder does not exist; make it first")
    if out.is_dir():
        raise DeviceError(f"{out}: is a folder; give a file")


def write_text(out: Path, text: str) -> None:
    """Write the whole file or nothing; `-` is stdout."""
    if str(out) == "-":
        click.echo(text, nl=False)
        return
    check_writable(out)
    part = out.with_name(f".{out.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(out)
