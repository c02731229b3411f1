"""An export in a process of its own that is killed when its files show a state, however fast or busy the machine is.

The processes are forks of one that has imported the exporter: nothing but work is left for the kill to interrupt.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path

LIMIT_S = 500.0
_FORKED = multiprocessing.get_context("forkserver")
# The last ones are what torch.export and numba import at their first use.
_FORKED.set_forkserver_preload(
    [
        *("phi_edge.verbs.export", "export.pipeline", "export.to_onnx.layout", "export.to_executorch.layout"),
        *("torch.export._trace", "numba.np.arraymath", "scipy.linalg"),
    ]
)


def export_until(words: Sequence[str], reached: Callable[[], bool]) -> int | None:
    """`phi-edge export WORDS`, killed as soon as `reached()`. -> its exit code, None if it was killed."""
    process = _FORKED.Process(target=_export, args=(list(words),))
    process.start()
    until_s = time.monotonic() + LIMIT_S
    while process.is_alive():
        if reached():
            process.kill()
            break
        assert time.monotonic() < until_s, f"export {words} neither ends nor reaches its moment"
        time.sleep(0.001)
    process.join()
    return process.exitcode if process.exitcode is not None and process.exitcode >= 0 else None


def never() -> bool:
    return False


def journal_lines(part: Path) -> int:
    """Finished stages, and the line before them, in the journal of OUT.part."""
    journal = part / "journal.jsonl"
    return len(journal.read_bytes().splitlines()) if journal.is_file() else 0


def _export(words: list[str]) -> None:
    from phi_edge.main import main

    main(["export", *words, "--quiet"], prog_name="phi-edge")
