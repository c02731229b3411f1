"""Where this user's machine keeps what can be made or downloaded again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$PHI_EDGE_CACHE, or ~/.cache/phi-edge; it need not be there. Raises RuntimeError where there is no home."""
    return Path(os.environ.get("PHI_EDGE_CACHE") or Path.home() / ".cache" / "phi-edge")
