"""Which start of the system this is: a device that was restarted in between has another boot id."""

from __future__ import annotations

import sys
from pathlib import Path


def restarted(before: str | None, now: str | None) -> bool:
    """Whether a device was restarted between two readings of its boot id; not where one of them could not be had."""
    return None not in (before, now) and before != now


def boot_id(root: Path = Path("/")) -> str | None:
    """The kernel's boot id; on Windows the number of its start. None where there is none. `root` contains proc/."""
    if sys.platform == "win32":
        from runtimes.system.windows import win32

        return win32.boot_id()
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    except OSError:
        return None
