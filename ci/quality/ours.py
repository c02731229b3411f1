"""Our own artifacts: `phi-edge export`, and the engine that runs what it made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ci.quality.engine import Logits
from export.artifact import open_artifact
from export.target import TARGETS
from runtimes.registry import open_tokens

EXPORT_S = 3600.0
WEIGHTS = (".onnx", ".data", ".pte")  # of an artifact's files; the others are text


def export_command(checkpoint: str, out: str, options: Sequence[str]) -> list[str]:
    """The command, from `phi-edge` on."""
    return ["phi-edge", "export", checkpoint, out, *options]


def export(checkpoint: Path, folder: Path, options: Sequence[str]) -> int:
    """Run the command; the bytes of the program and its weights. Raises subprocess.CalledProcessError."""
    _, *arguments = export_command(str(checkpoint), str(folder), options)
    subprocess.run([sys.executable, "-m", "phi_edge", *arguments, "--quiet"], check=True, timeout=EXPORT_S)
    files = open_artifact(folder).manifest.files
    return sum(file.bytes for name, file in files.items() if name.endswith(WEIGHTS))


def default_targets() -> list[str]:
    """A target for each way of storing and computing that some target has by default."""
    ways = {
        (target.format, target.schemes[target.format], target.activations[0]): target.name
        for target in reversed(list(TARGETS.values()))
    }
    return list(reversed(ways.values()))


class Ours:
    """An artifact in the engine that the product runs it with."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._loop = open_tokens(open_artifact(folder), threads=threads)

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """See Engine.logits."""
        return self._loop.logits_along(ids, first)
