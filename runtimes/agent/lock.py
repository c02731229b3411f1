"""One agent at a time on a device: an exclusive lock on a file, which the system frees however the process ends."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from runtimes.errors import DeviceBusyError, EngineError

_FAR = 1 << 20  # no byte is written there: on Windows other processes cannot read a locked byte


def hold_lock(path: Path) -> None:
    """Take the lock until this process ends. Raises DeviceBusyError, which says who holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise EngineError(f"{path}: the device's lock cannot be opened ({error.strerror})") from error
    if not _lock(handle):
        holder = os.read(handle, 200).decode("utf-8", "replace").strip()
        os.close(handle)
        raise DeviceBusyError(
            f"the device is in use: another agent holds {path} ({holder or 'it just started'}); wait for its end, or "
            "end it there"
        )
    os.ftruncate(handle, 0)
    held = {"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    os.write(handle, json.dumps(held).encode())
    # Never closed: the lock lives as long as the process.


def _lock(handle: int) -> bool:
    """Lock the open file, whose position stays at its beginning; False if another process did."""
    if sys.platform == "win32":
        import msvcrt

        try:
            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:  # PermissionError; Wine's C runtime does not say why
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
