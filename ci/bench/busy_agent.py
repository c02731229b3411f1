"""An agent whose model takes longer by a known share: after each forward it is busy for that share of its time.

python -P -m ci.bench.busy_agent FOLDER ...      as runtimes.agent; a file in FOLDER says the share (trials.py)

The busy time follows the forward's own, so the difference is the true one whatever else the machine does meanwhile.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from runtimes.agent.server import main
from runtimes.engines.onnx_engine import OnnxEngine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtimes.engines.engine import Logits

SHARE = "busy_share"  # the file's name; without it nothing is added


def add_busy_time(share: float) -> None:
    """From now on every forward of the ONNX engine takes longer by `share` of itself."""
    forward_rows = OnnxEngine.forward_rows

    def slower(engine: OnnxEngine, ids: Sequence[int], start: int, rows: int, *, long: bool = False) -> Logits:
        began = time.perf_counter()
        logits = forward_rows(engine, ids, start, rows, long=long)
        ended = time.perf_counter()
        while time.perf_counter() < ended + share * (ended - began):
            pass
        return logits

    setattr(OnnxEngine, "forward_rows", slower)  # noqa: B010 - to mypy a method cannot be assigned


if __name__ == "__main__":
    file = Path(sys.argv[1]) / SHARE
    if file.exists():
        add_busy_time(float(file.read_text()))
    os._exit(main())
