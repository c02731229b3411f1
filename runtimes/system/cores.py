"""How many threads an engine gets when the user gives no number, and how many it may get."""

from __future__ import annotations

import os
import sys

MOST_THREADS = 1024  # no machine that runs a Phi has more; starting 5,000 takes longer than an answer


def available_cores() -> int:
    """The cores that this process may run on."""
    if sys.platform == "win32":
        from runtimes.system.windows.win32 import allowed_cores

        return allowed_cores()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
