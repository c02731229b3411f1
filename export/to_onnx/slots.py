"""Where each tensor lies in an ONNX artifact's external data, and how the streamed rows get there.

A tensor whose rows the checkpoint interleaves (Phi-3-small's query, key and value by group; its gate and linear rows
by turns) lies there part after part, so that its products need not be put in order at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from export.models.layers import Rows
from export.models.shape import EMBEDDING, Config
from export.scheme import Scheme
from export.to_onnx.graph import GraphStyle
from export.to_onnx.sizes import shared_zero_points
from export.weights.kv_scales import scale_ids
from export.weights.slots import Interleaved, Slot, SlotId, Slots, lay_out

DATA_FILE = "model.onnx.data"
ALIGNMENT = 256  # of each tensor in the data file
COS, SIN = SlotId("cos_cache"), SlotId("sin_cache")


def shared_zero_points_id(bits: int) -> SlotId:
    """The middle code over and over again: symmetric matrices of all sizes read their zero points in it."""
    return SlotId(f"zero_points_{bits}")


def slots_for(
    config: Config, scheme: Scheme, context_tokens: int, style: GraphStyle, max_file_bytes: int | None = None
) -> dict[SlotId, Slot]:
    """The tensors as the graph has them, in the order of the forward pass."""
    tensors: list[tuple[SlotId, str, tuple[int, ...]]] = []
    bits_of: dict[SlotId, int] = {}
    for name, shape in config.tensor_shapes().items():
        precision = scheme.precision(name) if len(shape) == 2 else None
        if precision is None:
            tensors.append((SlotId(name), style.activations, shape))
            continue
        rows, columns = shape
        bits, blocks, row_bytes = precision.bits, precision.blocks(columns), columns * precision.bits // 8
        packed = (rows, row_bytes) if name == EMBEDDING else (rows, blocks, row_bytes // blocks)
        codes = SlotId(name, "codes")
        bits_of[codes] = bits
        tensors.append((codes, "uint8", packed))
        tensors.append((SlotId(name, "scales"), style.activations, (rows, blocks)))
        if not precision.symmetric:
            tensors.append((SlotId(name, "zero_points"), "uint8", (rows, precision.zero_point_bytes(columns))))
    table = (config.rope.stacked_rows(context_tokens), config.rope.rotary_dim // 2)
    tensors += [(COS, style.activations, table), (SIN, style.activations, table)]
    if style.int8_cache:
        per_channel = (config.num_key_value_heads, config.head_dim)
        tensors += [
            (id, "float32", per_channel) for layer in range(config.num_hidden_layers) for id in scale_ids(layer)
        ]
    if style.zero_points:
        shared = shared_zero_points(config, scheme)
        tensors += [(shared_zero_points_id(bits), "uint8", (count,)) for bits, count in shared.items()]
    slots = lay_out(tensors, file=DATA_FILE, alignment=ALIGNMENT, max_file_bytes=max_file_bytes)
    return {
        id: replace(slot, rounded=style.scales if id.kind == "scales" else None, bits=bits_of.get(id))
        for id, slot in slots.items()
    }


def split_slots(slots: Slots, rows: Mapping[str, Rows]) -> tuple[dict[SlotId, Slot], Interleaved]:
    """The graph's slots -> those that are streamed into, and where an interleaved tensor's bytes go. `rows` are those
    of the tensors that belong to parts."""
    streamed: dict[SlotId, Slot] = {}
    interleaved: dict[SlotId, Sequence[tuple[SlotId, int]]] = {}
    for id, slot in slots.items():
        pattern = rows.get(id.tensor, [])
        if sum(count for _, count in pattern) in (0, slot.shape[0]):  # part after part already
            streamed[id] = slot
            continue
        parts, interleaved[id] = split(slot, pattern)
        streamed |= {part.id: part for part in parts}
    return streamed, interleaved


def split(slot: Slot, rows: Rows) -> tuple[list[Slot], list[tuple[SlotId, int]]]:
    """One slot's parts, one after another in its place, and the order in which its rows' bytes go to them."""
    times = slot.shape[0] // sum(count for _, count in rows)
    row_bytes = slot.length // slot.shape[0]
    parts: list[Slot] = []
    offset = slot.offset
    for part, count in rows:
        shape = (times * count, *slot.shape[1:])
        parts.append(replace(slot, id=replace(slot.id, part=part), shape=shape, offset=offset))
        offset += times * count * row_bytes
    return parts, [(replace(slot.id, part=part), count * row_bytes) for part, count in rows]
