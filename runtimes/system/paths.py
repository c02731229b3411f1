"""How the engines' libraries take a path."""

from __future__ import annotations

import os
from pathlib import Path


def path_fault(path: Path) -> str | None:
    """Why they would not find it: they take all paths as UTF-8. None where they find it."""
    if os.fsencode(path) == str(path).encode("utf-8", "surrogatepass"):
        return None
    return f"{path}: the engines take paths in UTF-8 alone; rename it, or set LC_ALL=C.UTF-8"
