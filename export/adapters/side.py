"""Adapters that stay beside the weights, in ONNX: each a file, of which a request names one.

The graph has two inputs for every matrix that one of them changes, A and B, which are empty unless an adapter is
chosen: x @ W is followed by + x @ A @ B. The file is onnxruntime's own (.onnx_adapter), which stock onnxruntime and
onnxruntime-genai load too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from export.adapters.changes import LowRank
from export.adapters.config import Ranks
from export.adapters.fit import Fit, places
from export.adapters.folder import AdapterFolder, open_adapter
from export.artifact import ADAPTER_NAME, ADAPTER_SUFFIX
from export.checkpoint.open import Checkpoint
from export.errors import AdapterError
from export.request import AdapterChoice
from export.scheme import EMBEDDING

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1  # of the adapter and of the model, in the file; nobody reads them


@dataclass(frozen=True, kw_only=True)
class SideAdapter:
    """An adapter and what it adds to each matrix, which may be several products, each of some of its rows."""

    folder: AdapterFolder
    changes: Mapping[str, Sequence[LowRank]]

    @property
    def file(self) -> str:
        """Its name in the artifact."""
        return self.folder.name + ADAPTER_SUFFIX


def input_names(tensor: str) -> tuple[str, str]:
    """The graph's inputs for a matrix: A [columns, rank] and B [rank, rows]."""
    path = tensor.removesuffix(".weight")
    return f"{path}.lora_A", f"{path}.lora_B"


def side_adapters(checkpoint: Checkpoint, choices: Sequence[AdapterChoice]) -> list[SideAdapter]:
    """Raises AdapterError where one is no plain LoRA of the layers' matrices, or does not fit."""
    found: list[SideAdapter] = []
    for choice in choices:
        adapter = open_adapter(choice.folder, choice.weight)
        if not re.fullmatch(ADAPTER_NAME, adapter.name):
            raise AdapterError(
                f"{adapter.folder}: a request names an adapter by its folder; rename it: 1 to 64 characters of A-Z a-z "
                "0-9 . _ -"
            )
        if any(other.folder.name == adapter.name for other in found):
            raise AdapterError(f"{adapter.folder}: another --side-adapter has the same name; rename one of the folders")
        changes: dict[str, list[LowRank]] = {}
        ranks = Ranks(adapter.config, str(adapter.folder))
        for tensor, change in Fit(adapter, places(checkpoint.config), checkpoint.tensors, ranks).changes():
            if not isinstance(change, LowRank) or change.magnitude is not None or tensor == EMBEDDING:
                raise AdapterError(
                    f"{adapter.folder}: changes {tensor} by more than A and B (DoRA, an embedding, or saved whole), "
                    "which cannot be exchanged while it runs; merge it with --adapter"
                )
            changes.setdefault(tensor, []).append(change)
        found.append(SideAdapter(folder=adapter, changes=changes))
    return found


def parameters(adapter: SideAdapter, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A and B of each matrix by the graph's names, float32, the scale in B."""
    result: dict[str, Tensor] = {}
    for tensor, changes in adapter.changes.items():
        b = torch.zeros(sum(change.a.shape[0] for change in changes), shapes[tensor][0])
        first = 0
        for change in changes:
            rank = slice(first, first := first + change.a.shape[0])
            part = change.b.read_rows(0, change.count).float()
            b[rank, change.first : change.first + change.count] = change.scale * part.T
        a = torch.cat([change.a.read_rows(0, change.a.shape[0]).float() for change in changes])
        if not (a.isfinite().all() and b.isfinite().all()):
            raise AdapterError(f"{adapter.folder.folder}: has values of {tensor} that are not finite; train it again")
        result |= dict(zip(input_names(tensor), (a.T.contiguous(), b), strict=True))
    return result


def write_side(adapter: SideAdapter, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Write the adapter's file. Raises AdapterError without onnxruntime, which knows the format."""
    # Before the import: it reports usage to its maker. runtimes/system/telemetry.py is not ours to import, and of this
    # room a device gets what an artifact is, which this is no part of.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise AdapterError(
            "--side-adapter needs onnxruntime, which writes its files: pip install 'phi-edge[onnx]'"
        ) from error
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy())
        for name, value in parameters(adapter, shapes).items()
    }
    content = onnxruntime.AdapterFormat()
    content.set_adapter_version(VERSION)
    content.set_model_version(VERSION)
    content.set_parameters(values)
    content.export_adapter(str(folder / adapter.file))
