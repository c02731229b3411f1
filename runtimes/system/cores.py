"""How many threads an engine gets when the user gives no number."""

from __future__ import annotations

import os
import sys


def available_cores() -> int:
    """The cores that this process may run on."""
    if sys.platform == "win32":
        from runtimes.system.win32 import allowed_cores

        return allowed_cores()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
