"""Safetensors shards, read by rows with plain reads: a memory map would count every page read as resident.

Not a general reader: two-dimensional and one-dimensional tensors in bf16, fp16 or fp32, which is what Phi-3 has, and
the integers of checkpoints that are quantised already.
Format: https://huggingface.co/docs/safetensors (8-byte header length, JSON header, bytes).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from export.errors import CheckpointError
from export.strict import parse_json
from export.weights.scratch import Scratch

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
DTYPES = FLOATS | {
    "I32": torch.int32,
    "I64": torch.int64,
    # These are read nowhere: a checkpoint that has them is refused by what it is (export.checkpoint.quantisation).
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
MOST_HEADER_BYTES = 100_000_000  # as the reference reader


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
        return math.prod(self.shape) * self.dtype.itemsize

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
            if hasattr(os, "posix_fadvise"):  # Linux has it
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
                file.seek(first + row * self.row_bytes)
                if file.readinto(data) < data.nbytes:
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
    """A shard's tensors by name. Raises CheckpointError where the file is not a whole safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise CheckpointError(
                f"{path}: is truncated (its header alone needs {length + 8} bytes, the file has {size})"
            )
        if length > MOST_HEADER_BYTES:
            raise CheckpointError(f"{path}: is not a safetensors file (a header of {length} bytes)")
        try:
            header = parse_json(file.read(length))
        except ValueError as error:
            raise CheckpointError(f"{path}: is not a safetensors file ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: is not a safetensors file (its header is a {type(header).__name__})")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    tensors = {name: _read_entry(path, name, entry, 8 + length) for name, entry in entries.items()}
    _refuse_gaps(path, tensors, 8 + length, size)
    return tensors


def _read_entry(path: Path, name: str, entry: Any, data: int) -> Piece:
    """One tensor of the header; `data` is where the bytes of all tensors begin."""
    dtype, shape, offsets = (
        entry.get(key) if isinstance(entry, dict) else None for key in ("dtype", "shape", "data_offsets")
    )
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"{path}: {name!r:.80} has no dtype, shape and data_offsets as safetensors writes them; download it again"
        )
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name} has dtype {dtype:.20}; allowed: {', '.join(FLOATS)}")
    start, end = offsets
    tensor = Piece(name, path, DTYPES[dtype], tuple(shape), data + start)
    if tensor.length != end - start:
        raise CheckpointError(
            f"{path}: {name} has {end - start} bytes where {dtype} {list(shape)} has {tensor.length}; download it again"
        )
    return tensor


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _refuse_gaps(path: Path, tensors: Mapping[str, Piece], data: int, size: int) -> None:
    """The tensors must fill the file, one after another: bytes of the header, or of another tensor, are no weights."""
    reached = data
    for tensor in sorted(tensors.values(), key=lambda each: (each.offset, each.length)):
        if tensor.offset != reached:
            raise CheckpointError(
                f"{path}: {tensor.name} begins at byte {tensor.offset}, where the tensor before it ends at {reached}; "
                "download it again"
            )
        reached += tensor.length
    if reached > size:
        raise CheckpointError(f"{path}: is truncated (it has {size} bytes of {reached}); download it again")
    if reached < size:
        raise CheckpointError(f"{path}: has {size - reached} bytes behind its last tensor; download it again")
