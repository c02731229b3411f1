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
from export.weights.slots import Interleaved, Slot, SlotId, Slots

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
    return TensorLayout(
        name=name,
        shape=shape,
        bits=next((slot.bits for slot in slots.values() if slot.bits), None),
        block_size=count // sum(math.prod(slot.shape) for slot in scales) if scales else None,
        zero_points=any(id.kind == "zero_points" for id in slots),
        rows=tuple((id.part, length * shape[0] // stored) for id, length in pieces),
        slots=slots,
    )


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
    }


def read_layout(artifact: Artifact) -> list[TensorLayout]:
    """The artifact's layout.json. Raises ArtifactError."""
    path = artifact.folder / LAYOUT
    if LAYOUT not in artifact.manifest.files:
        raise ArtifactError(f"{artifact.folder}: has no {LAYOUT}; export it again with this version")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, this version reads {SCHEMA}")
        tensors = [_read_tensor(entry) for entry in content["tensors"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({type(error).__name__}: {error}); export it again") from error
    for slot in (slot for tensor in tensors for slot in tensor.slots.values()):
        if slot.file not in artifact.manifest.files or slot.end > artifact.manifest.files[slot.file].bytes:
            raise ArtifactError(f"{path}: {slot.id} lies outside of {slot.file}; export it again")
    return tensors


def _read_tensor(entry: Mapping[str, Any]) -> TensorLayout:
    tensor = SlotId(entry["name"])
    slots = [_read_slot(tensor, content) for content in entry["slots"]]
    changes: dict[str, Any] = {
        "shape": tuple(entry["shape"]),
        "rows": tuple((part, count) for part, count in entry["rows"]),
        "slots": {slot.id: slot for slot in slots},
    }
    return TensorLayout(**{**entry, **changes})


def _read_slot(tensor: SlotId, content: Mapping[str, Any]) -> Slot:
    facts = dict(content)
    id = dataclasses.replace(tensor, kind=facts.pop("kind"), part=facts.pop("part", ""))
    facts["shape"] = tuple(facts["shape"])
    return Slot(id, **facts)
