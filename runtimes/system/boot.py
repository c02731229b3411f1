"""Which start of the system this is: a device that was restarted in between has another boot id."""

from __future__ import annotations

import sys
from pathlib import Path


def boot_id(root: Path = Path("/")) -> str | None:
    """The kernel's boot id; on Windows the number of its start. None where there is none. `root` contains proc/."""
    if sys.platform == "win32":
        from runtimes.system import win32

        return win32.boot_id()
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    except OSError:
        return None
