"""Files that a verb writes: refused before the work if they cannot be written, and never half-written."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import click
from click.shell_completion import CompletionItem

from devices.errors import DeviceError


class AnyPath(click.Path):
    """A path, which may not be there. What the system itself takes for no path is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A Path."""
        if "\0" in str(value):
            self.fail(f"{str(value)!r} has a NUL character; a path has none", param, ctx)
        return super().convert(value, param, ctx)


FILE = AnyPath(path_type=Path)


class Folder(AnyPath):
    """A path of which completion offers folders alone. Whether it is one is checked by the verb's work."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The shell's own completion of folders."""
        return [CompletionItem(incomplete, type="dir")]


FOLDER = Folder(path_type=Path)


def check_writable(out: Path, read: Iterable[str | Path | None] = ()) -> None:
    """Refuse a file that cannot be written, before minutes of work, and one that the command itself reads: one of
    `read`, which are files and models' folders. `-` is stdout. Raises DeviceError."""
    if str(out) == "-":
        return
    try:
        if out.is_file() and any(_destroys(out, Path(source)) for source in read if source is not None):
            raise DeviceError(f"{out}: is read by this command and would be overwritten; give another file")
        if out.is_dir():
            raise DeviceError(f"{out}: is a folder; give a file")
        if in_place(out):
            if not os.access(out, os.W_OK):
                raise DeviceError(f"{out}: cannot be written (Permission denied); give another file")
            return
        target = _real(out)
        if not target.parent.is_dir():
            raise DeviceError(f"{out}: its folder does not exist; make it first")
        target.exists()  # raises for a name that is too long
        with _aside(target):
            pass
    except OSError as error:
        if not (out.is_file() and os.access(out, os.W_OK)):
            raise DeviceError(f"{out}: cannot be written ({error.strerror}); give another file") from error


def _destroys(out: Path, source: Path) -> bool:
    """Whether the file is the source, or in a model's folder that is."""
    if not source.is_dir():
        return source.exists() and out.samefile(source)
    is_model = any((source / name).is_file() for name in ("manifest.json", "config.json"))
    return is_model and out.resolve().is_relative_to(source.resolve())


def make_folder(out: Path) -> None:
    """A folder for files, which may be there. Raises DeviceError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"{out}: cannot be made a folder ({error.strerror}); give another") from error


def write_text(out: Path, text: str) -> None:
    """Write the whole file or nothing; `-` is stdout. Links are followed; a device or a pipe is written as it is, and
    so is a file whose folder does not allow a second one. Raises DeviceError."""
    if str(out) == "-":
        click.echo(text, nl=False)
        return
    check_writable(out)
    data = text.encode("utf-8", "backslashreplace")
    try:
        if in_place(out):
            out.write_bytes(data)
        else:
            _replace(_real(out), data)
    except OSError as error:
        raise DeviceError(f"{out}: cannot be written ({error.strerror}); give another file") from error


def in_place(out: Path) -> bool:
    """Whether the path is a device, a pipe or an open file of a process: nothing that may be renamed over."""
    real = os.path.abspath(out)  # noqa: PTH100 (the links of /dev must not be followed)
    return real.startswith(("/dev/", "/proc/")) or (out.exists() and not out.is_file())


def _replace(target: Path, data: bytes) -> None:
    """Write aside, flush to the disk, rename."""
    try:
        with _aside(target) as (part, file):
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, part)
            part.replace(target)
    except OSError:
        # No second file may be made there, or the file is a mount point: it can only be overwritten.
        if not target.is_file() or not os.access(target, os.W_OK):
            raise
        target.write_bytes(data)


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file in the target's folder, which is removed at the end unless it was renamed."""
    part = target.with_name(f".phi-edge.{os.getpid()}.part")
    with part.open("xb") as file:
        try:
            yield part, file
        finally:
            part.unlink(missing_ok=True)


def _real(out: Path) -> Path:
    real = Path(os.path.realpath(out))
    if real.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(out))
    return real
