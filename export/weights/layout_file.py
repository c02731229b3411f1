"""layout.json: where an artifact has each tensor, so that its weights can be read without the checkpoint or a trace."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.artifact import Artifact
from export.errors import ArtifactError
from export.models.shape import EMBEDDING
from export.strict import build, read_json
from export.weights.slots import BLOCK_WEIGHTS, DTYPES, BlockType, Interleaved, Kind, Slot, SlotId, Slots

LAYOUT = "layout.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class TensorLayout:
    """One tensor of the model and its slots.

    Where `rows` is not empty, its rows lie in several slots: (part, how many) from the first row on, over and over
    again to the last. `bits` and `block_size` are None for a tensor in float. `zero_points`: whether it has its own;
    without them the middle code stands for 0.
    """

    name: str
    shape: tuple[int, ...]
    bits: int | None
    block_size: int | None
    zero_points: bool
    rows: tuple[tuple[str, int], ...]
    slots: Slots


def describe_layout(
    shapes: Mapping[str, tuple[int, ...]], slots: Slots, interleaved: Interleaved
) -> list[TensorLayout]:
    """The layout of every tensor of the model, in the order of the files. Slots of other things are left out."""
    by_tensor: dict[str, dict[SlotId, Slot]] = {}
    for id, slot in slots.items():
        by_tensor.setdefault(id.tensor, {})[id] = slot
    # A format that cannot share a tied embedding has an lm_head of its own.
    shapes = {"lm_head.weight": shapes[EMBEDDING]} | dict(shapes)
    return [_describe(name, shapes[name], own, interleaved) for name, own in by_tensor.items() if name in shapes]


def _describe(name: str, shape: tuple[int, ...], slots: Slots, interleaved: Interleaved) -> TensorLayout:
    count = math.prod(shape)
    scales = [slot for id, slot in slots.items() if id.kind == "scales"]
    pieces = interleaved.get(SlotId(name, "codes" if scales else "weight"), ())
    stored = sum(slots[id].length for id in dict(pieces))
    block_types = {slot.block_type for slot in slots.values() if slot.block_type}
    return TensorLayout(
        name=name,
        shape=shape,
        bits=next((slot.bits for slot in slots.values() if slot.bits), None),
        block_size=_block_size(count, scales) if scales else BLOCK_WEIGHTS if block_types else None,
        zero_points=any(id.kind == "zero_points" for id in slots) or "Q4_1" in block_types,
        rows=tuple((id.part, length * shape[0] // stored) for id, length in pieces),
        slots=slots,
    )


def _block_size(count: int, scales: Sequence[Slot]) -> int:
    return count // sum(math.prod(slot.shape) for slot in scales)


def write_layout(folder: Path, tensors: Sequence[TensorLayout]) -> None:
    """Write layout.json: a line for each tensor, and one for each of its slots."""
    lines = []
    for tensor in tensors:
        facts = {f.name: getattr(tensor, f.name) for f in dataclasses.fields(tensor) if f.name != "slots"}
        head = json.dumps(facts).removesuffix("}")
        slots = ",\n   ".join(json.dumps(_slot_content(slot)) for slot in tensor.slots.values())
        lines.append(f'{head}, "slots": [\n   {slots}]}}')
    text = f'{{"schema": {SCHEMA}, "tensors": [\n ' + ",\n ".join(lines) + "\n]}\n"
    (folder / LAYOUT).write_text(text, encoding="utf-8")


def _slot_content(slot: Slot) -> dict[str, Any]:
    return {
        "kind": slot.id.kind,
        **({"part": slot.id.part} if slot.id.part else {}),
        "file": slot.file,
        "offset": slot.offset,
        "dtype": slot.dtype,
        "shape": slot.shape,
        **({"bits": slot.bits, "even_high": slot.even_high} if slot.bits else {}),
        **({"block_type": slot.block_type} if slot.block_type else {}),
    }


def read_layout(artifact: Artifact) -> list[TensorLayout]:
    """The artifact's layout.json. Raises ArtifactError."""
    path = artifact.find(LAYOUT)
    if path is None:
        raise ArtifactError(f"{artifact.folder}: has no {LAYOUT}; export it again with this version")
    content = build(_Layout, read_json(path, ArtifactError, "export it again"), str(path), ArtifactError)
    if content.schema != SCHEMA:
        raise ArtifactError(f"{path}: schema {content.schema}, this version reads {SCHEMA}; export it again")
    tensors = [_read_tensor(entry, path) for entry in content.tensors]
    for slot in (slot for tensor in tensors for slot in tensor.slots.values()):
        if slot.file not in artifact.manifest.files or slot.end > artifact.manifest.files[slot.file].bytes:
            raise ArtifactError(f"{path}: {slot.id} lies outside of {slot.file}; export it again")
    return tensors


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """A slot as the file has it."""

    kind: Kind
    part: str = ""
    file: str
    offset: int
    dtype: str
    shape: Sequence[int]
    bits: int | None = None
    even_high: bool = False
    block_type: BlockType | None = None


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """A tensor as the file has it."""

    name: str
    shape: Sequence[int]
    bits: int | None
    block_size: int | None
    zero_points: bool
    rows: Sequence[Sequence[Any]]
    slots: Sequence[_Slot]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The file."""

    schema: int
    tensors: Sequence[_Tensor]


def _read_tensor(entry: _Tensor, path: Path) -> TensorLayout:
    slots = [_read_slot(SlotId(entry.name, slot.kind, slot.part), slot, path) for slot in entry.slots]
    rows = [(part, count) for part, count in (row for row in entry.rows if len(row) == 2)]
    counted = all(isinstance(part, str) and type(count) is int and count > 0 for part, count in rows)
    if len(rows) < len(entry.rows) or not counted or min(entry.shape, default=0) < 1:
        raise ArtifactError(f"{path}: {entry.name:.200} has rows or a shape that no tensor has; export it again")
    return TensorLayout(
        name=entry.name,
        shape=tuple(entry.shape),
        bits=entry.bits,
        block_size=entry.block_size,
        zero_points=entry.zero_points,
        rows=tuple(rows),
        slots={slot.id: slot for slot in slots},
    )


def _read_slot(id: SlotId, entry: _Slot, path: Path) -> Slot:
    if entry.dtype not in DTYPES or entry.offset < 0 or min(entry.shape, default=0) < 1:
        raise ArtifactError(f"{path}: the slot {id!s:.200} has no known type, offset or shape; export it again")
    return Slot(
        id=id,
        dtype=entry.dtype,
        shape=tuple(entry.shape),
        offset=entry.offset,
        file=entry.file,
        bits=entry.bits,
        even_high=entry.even_high,
        block_type=entry.block_type,
    )
