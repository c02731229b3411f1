"""OUT of an export: where the work is done until it is finished, and how the finished files get to their place.

A new OUT is made beside its place, in OUT.part, and renamed. An OUT that is there already may be the current folder, a
mount point, or a folder whose parent cannot be written: then the work is done inside it, and the files are moved.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from export.artifact import MANIFEST
from export.errors import SpaceError

JOURNAL, LOCK = "journal.jsonl", "lock"
INSIDE = ".phi-edge-export"  # the work folder's name in an OUT that is there already
LOCK_TEXT = "phi-edge export\n"
_MOVING = "moving"  # the names of the files that are being moved to OUT, one a line


def real_path(out: Path) -> Path:
    """OUT with its links followed; it need not exist. Raises SpaceError for links that lead in a circle."""
    real = Path(os.path.realpath(out))
    if real.is_symlink():
        raise SpaceError(f"{out}: {os.strerror(errno.ELOOP)}; remove the link, or give another OUT")
    return real


def work_folder(out: Path) -> Path:
    """Where the export to `out` is done, or was begun."""
    beside = out.with_name(out.name + ".part") if out.name else out / INSIDE
    return out / INSIDE if out.is_dir() and not (_is_folder(beside) and _is_ours(beside)) else beside


def take_over(work: Path) -> None:
    """Make the work folder, or go on in one that an earlier export made. Raises SpaceError for any other."""
    if os.path.lexists(work) and not (_is_folder(work) and (_is_ours(work) or _is_unclaimed(work))):
        raise SpaceError(
            f"{work}: is in the way: an export would work there, and no export of ours made it; rename it, or give "
            "another OUT"
        )
    lock = work / LOCK
    try:
        work.mkdir(parents=True, exist_ok=True)
        if not lock.exists() or _is_empty_file(lock):
            lock.write_text(LOCK_TEXT, encoding="utf-8")
    except OSError as error:
        with contextlib.suppress(OSError):  # nothing is left of a folder that is not ours yet
            lock.unlink(missing_ok=True)
            work.rmdir()
        raise SpaceError(f"{work}: cannot be made ({error.strerror}); give another OUT") from error


def discard(work: Path) -> None:
    """Remove a work folder and everything in it: its lock last, so that it is known as ours until the end."""
    if not _is_folder(work):
        return
    for path in work.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path, ignore_errors=True) if _is_folder(path) else path.unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def check_out(out: Path, work: Path) -> None:
    """The output folder must be new or empty, and where it is made must be a folder that can be written. Raises
    SpaceError."""
    if out.exists() and not out.is_dir():
        raise SpaceError(f"{out}: is a file; give a new folder")
    if out.exists() and any(path != work for path in out.iterdir()):
        raise SpaceError(f"{out}: is not empty; give a new folder, or remove this one first")
    place = next(parent for parent in work.parents if parent.exists())
    if not place.is_dir():
        raise SpaceError(f"{place}: is a file, and {out} would be in it; give another OUT")
    if not os.access(place, os.W_OK):
        raise SpaceError(f"{place}: cannot be written (Permission denied); give another OUT")


def publish(folder: Path, out: Path) -> None:
    """Give the finished folder its name, or its files their place in an OUT that is there already."""
    if not out.exists():
        folder.rename(out)
        return
    names = sorted(path.name for path in folder.iterdir())
    (folder.parent / _MOVING).write_text("".join(name + "\n" for name in names), encoding="utf-8")
    for name in names:
        if (out / name).exists():
            raise SpaceError(f"{out / name}: came while the export ran; remove it, and start the same command again")
        shutil.move(folder / name, out / name)


def recover(folder: Path, out: Path) -> None:
    """Undo what `publish` had done of an export that was interrupted before it could seal."""
    moving = folder.parent / _MOVING
    if (out / MANIFEST).exists():
        return
    if moving.is_file():
        for name in moving.read_text(encoding="utf-8").split("\n")[:-1]:
            if (out / name).exists() and not (folder / name).exists():
                shutil.move(out / name, folder / name)
        moving.unlink()
    elif folder.parent.parent != out and out.is_dir() and not folder.exists():
        out.rename(folder)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_unclaimed(work: Path) -> bool:
    """Whether nothing is in the folder, or only a lock that is still empty: an export was killed as it began."""
    return all(path.name == LOCK and _is_empty_file(path) for path in work.iterdir())


def _is_empty_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and not path.stat().st_size


def _is_ours(work: Path) -> bool:
    """Whether the folder has our lock or our journal."""
    for name, beginning in ((LOCK, LOCK_TEXT.encode()), (JOURNAL, b'{"job": "')):
        path = work / name
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(len(beginning)) == beginning:
                    return True
    return False
