"""A tensor of the base with the changes of adapters, made a few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from export.adapters.changes import Change
from export.checkpoint.shards import Piece, StoredTensor
from export.errors import AdapterError
from export.weights.scratch import Scratch


@dataclass(frozen=True)
class MergedTensor:
    """It reads as export.checkpoint.shards' StoredTensor does. What does not change the values, such as its size in
    the checkpoint, is the base's."""

    base: StoredTensor
    changes: tuple[Change, ...]

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def files(self) -> set[Path]:
        return self.base.files

    @property
    def pieces(self) -> Sequence[Piece]:
        return self.base.pieces

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def row_bytes(self) -> int:
        """Of the base, for a progress bar."""
        return self.base.row_bytes

    @property
    def length(self) -> int:
        return self.base.length

    def read_rows(self, start: int, stop: int, scratch: Scratch | None = None) -> Tensor:
        """Rows start..stop in float32. Raises AdapterError where a change makes them not finite."""
        scratch = scratch or Scratch()
        rows = scratch.take("merged", (stop - start, *self.shape[1:]), torch.float32)
        rows.copy_(self.base.read_rows(start, stop, scratch))
        for change in self.changes:
            begin, end = max(start, change.first), min(stop, change.first + change.count)
            if begin < end:
                part = rows[begin - start : end - start]
                finite = bool(part.isfinite().all())
                change.apply(part, begin - change.first, end - change.first)
                if finite and not part.isfinite().all():
                    raise AdapterError(
                        f"{change.adapter}: makes {self.name} not finite; its training went wrong, or the file is "
                        "damaged: download it again"
                    )
        return rows

    def read(self) -> Tensor:
        """The whole tensor in float32."""
        return self.read_rows(0, self.shape[0])
