"""One agent at a time on a device: an exclusive lock on a file, which the kernel frees however the process ends."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from runtimes.errors import DeviceBusyError, EngineError


def hold_lock(path: Path) -> None:
    """Take the lock until this process ends. Raises DeviceBusyError, which says who holds it."""
    try:
        import fcntl
    except ImportError:
        raise EngineError("--lock needs flock, which this system lacks; leave it out") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise EngineError(f"{path}: the device's lock cannot be opened ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip()
        os.close(handle)
        raise DeviceBusyError(
            f"the device is in use: another agent holds {path} ({holder or 'it just started'}); wait for its end, or "
            "end it there"
        ) from None
    os.ftruncate(handle, 0)
    held = {"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    os.pwrite(handle, json.dumps(held).encode(), 0)
    # Never closed: the lock lives as long as the process.
