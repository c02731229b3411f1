"""Which process this is, so that another one on the same machine can see at once that it has ended (Linux)."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


def identity() -> str | None:
    """This process: the name space of its number, the number, and when it was started. None where /proc has no say."""
    space, started = _space(), _started(os.getpid())
    return None if space is None or started is None else f"{space} {os.getpid()} {started}"


def has_ended(process: str | None) -> bool:
    """Whether the process of that identity has certainly ended; False where it cannot be seen from here."""
    words = (process or "").rsplit(" ", 2)
    if len(words) != 3 or not words[1].isdigit() or words[0] != _space():
        return False
    return _started(int(words[1])) != words[2]


def _space() -> str | None:
    try:
        return os.readlink(PROC / "self/ns/pid")  # noqa: PTH115 (no file: a name)
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """In ticks since the boot; a zombie has ended."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
