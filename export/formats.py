"""The formats behind one interface: lay the weight files out; when their slots are full, write the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from export.artifact import Format
from export.coverage import Coverage
from export.job import Job
from export.weights.slots import Interleaved, SlotId, Slots
from export.weights.weight_file import WeightFile


class Layout(Protocol):
    """A format's plan for one job."""

    slots: Slots  # of the files whose bytes are streamed
    interleaved: Interleaved
    files: tuple[str, ...]  # every file this format writes, in the order of the manifest
    options: Mapping[str, Any]  # for the manifest: what the engine is given, as applied
    activations: str
    coverage: Coverage
    notes: Sequence[str]  # what a program that runs the artifact must be able to do, beyond what all of them do

    def fill(self, sink: WeightFile) -> None:
        """Fill the slots that do not come from the checkpoint."""

    def finish(self, folder: Path, digests: Mapping[SlotId, str]) -> None:
        """Write what is left once the weight file is full."""


def _onnx(job: Job) -> Layout:
    from export.to_onnx.layout import OnnxLayout

    return OnnxLayout(job)


def _executorch(job: Job) -> Layout:
    from export.to_executorch.layout import ExecuTorchLayout

    return ExecuTorchLayout(job)


def _gguf(job: Job) -> Layout:
    from export.to_gguf.layout import GgufLayout

    return GgufLayout(job)


# Each imports its library only when it is called.
LAYOUTS: Mapping[Format, Callable[[Job], Layout]] = {"onnx": _onnx, "executorch": _executorch, "gguf": _gguf}
