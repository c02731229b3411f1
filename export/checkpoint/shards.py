"""Safetensors shards, read by rows with plain reads: a memory map would count every page read as resident.

Not a general reader: two-dimensional and one-dimensional tensors in bf16, fp16 or fp32, which is what Phi-3 has, and
the integers of checkpoints that are quantised already.
Format: https://huggingface.co/docs/safetensors (8-byte header length, JSON header, bytes).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from export.errors import CheckpointError
from export.weights.scratch import Scratch

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
DTYPES = FLOATS | {"I32": torch.int32, "I64": torch.int64}


@dataclass(frozen=True)
class Piece:
    """A tensor of a shard: where its bytes lie."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def length(self) -> int:
        return self.shape[0] * self.row_bytes

    def read_into(self, view: memoryview, start: int) -> None:
        """Bytes from row `start` on, as many as `view` takes."""
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset + start * self.row_bytes)
            done = 0
            while done < len(view):  # one read gives at most 2 GiB
                count = file.readinto(view[done:])
                if not count:
                    raise CheckpointError(f"{self.file}: ends inside {self.name}; download the checkpoint again")
                done += count
            os.posix_fadvise(file.fileno(), self.offset, 0, os.POSIX_FADV_SEQUENTIAL)

    def read_rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop in the stored dtype."""
        rows = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        self.read_into(rows.view(torch.uint8).numpy().data.cast("B"), start)
        return rows

    def read_columns(self, start: int, stop: int) -> Tensor:
        """Columns start..stop of every row, in the stored dtype: a short read for each row."""
        part = torch.empty((self.shape[0], stop - start), dtype=self.dtype)
        first = self.offset + start * self.dtype.itemsize
        with self.file.open("rb", buffering=0) as file:
            for row, data in enumerate(part.view(torch.uint8).numpy()):
                if os.preadv(file.fileno(), [data], first + row * self.row_bytes) < data.nbytes:
                    raise CheckpointError(f"{self.file}: ends inside {self.name}; download the checkpoint again")
        return part


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the model: its rows lie in one tensor of the checkpoint, or one after another in several of one type,
    such as a Llama's query, key and value."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.pieces[0].dtype

    @property
    def files(self) -> set[Path]:
        return {piece.file for piece in self.pieces}

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(piece.shape[0] for piece in self.pieces), *self.pieces[0].shape[1:])

    @property
    def row_bytes(self) -> int:
        return self.pieces[0].row_bytes

    @property
    def length(self) -> int:
        return self.shape[0] * self.row_bytes

    def read_rows(self, start: int, stop: int, scratch: Scratch | None = None) -> Tensor:
        """Rows start..stop (or elements, of a vector) in the stored dtype, in `scratch` where it is given."""
        rows = (scratch or Scratch()).take("stored", (stop - start, *self.shape[1:]), self.dtype)
        view, first = rows.view(torch.uint8).numpy().data.cast("B"), 0  # first: the piece's first row
        for piece in self.pieces:
            begin, end = max(start, first), min(stop, first + piece.shape[0])
            if begin < end:
                place = slice((begin - start) * self.row_bytes, (end - start) * self.row_bytes)
                piece.read_into(view[place], begin - first)
            first += piece.shape[0]
        return rows

    def read(self) -> Tensor:
        """The whole tensor in float32."""
        return self.read_rows(0, self.shape[0]).float()


def read_shard_header(path: Path) -> dict[str, Piece]:
    """A shard's tensors by name. Raises CheckpointError where the file is not whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise CheckpointError(
                f"{path}: is truncated (its header alone needs {length + 8} bytes, the file has {size})"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise CheckpointError(f"{path}: is not a safetensors file ({error})") from error
    tensors: dict[str, Piece] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{path}: {name} has dtype {entry['dtype']}; allowed: {', '.join(FLOATS)}")
        start, end = entry["data_offsets"]
        tensor = Piece(name, path, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + start)
        if tensor.offset + tensor.length > size or tensor.length != end - start:
            raise CheckpointError(
                f"{path}: is truncated ({name} ends at byte {8 + length + end}, the file has {size}); download it again"
            )
        tensors[name] = tensor
    return tensors
