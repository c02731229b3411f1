"""Where each tensor lies in an ONNX artifact's external data, and how the streamed rows get there.

A tensor whose rows the checkpoint interleaves (Phi-3-small's query, key and value by group; its gate and linear rows
by turns) lies there part after part, so that the graph need not take its products apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from export.models.shape import EMBEDDING, Config, Rows
from export.scheme import Scheme
from export.to_onnx.graph import Form
from export.weights.slots import Slot, lay_out

DATA_FILE = "model.onnx.data"
ALIGNMENT = 256  # of each tensor in the data file


def slots_for(
    config: Config, scheme: Scheme, context_tokens: int, form: Form, max_file_bytes: int | None = None
) -> dict[str, Slot]:
    """The tensors as the graph has them, in the order of the forward pass."""
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    zeros: dict[int, int] = {}  # bits -> the bytes of the largest matrix's zero points
    for name, shape in config.tensor_shapes().items():
        bits = scheme.embedding_bits if name == EMBEDDING else scheme.bits
        if len(shape) == 1 or bits is None:
            tensors.append((name, form.activations, shape))
            continue
        assert scheme.block_size
        rows, blocks, block_bytes = shape[0], shape[1] // scheme.block_size, scheme.block_size * bits // 8
        packed = (rows, blocks * block_bytes) if name == EMBEDDING else (rows, blocks, block_bytes)
        tensors.append((f"{name}_q", "uint8", packed))
        tensors.append((f"{name}_scales", form.activations, (rows, blocks)))
        if form.zero_points and (name != EMBEDDING or config.tie_word_embeddings):
            zeros[bits] = max(zeros.get(bits, 0), rows * -(-blocks * bits // 8))
    table = (config.rope.stacked_rows(context_tokens), config.rope.rotary_dim // 2)
    tensors += [("cos_cache", form.activations, table), ("sin_cache", form.activations, table)]
    tensors += [(f"zero_points_{bits}", "uint8", (count,)) for bits, count in zeros.items()]
    slots = lay_out(tensors, file=DATA_FILE, alignment=ALIGNMENT, max_file_bytes=max_file_bytes)
    return {n: replace(s, rounded=form.scales) if n.endswith("_scales") else s for n, s in slots.items()}


def part_slots(
    config: Config, slots: Mapping[str, Slot]
) -> tuple[dict[str, Slot], dict[str, Sequence[tuple[str, int]]]]:
    """The graph's slots -> those that are streamed into, and where a parted tensor's bytes go (see WeightFile)."""
    streamed: dict[str, Slot] = {}
    spread: dict[str, Sequence[tuple[str, int]]] = {}
    for name, slot in slots.items():
        tensor, suffix = next(((name[: -len(end)], end) for end in ("_q", "_scales") if name.endswith(end)), (name, ""))
        rows = next(
            (rows for end, rows in config.interleaved().items() if tensor.rpartition(".")[0].endswith(end)), None
        )
        if rows is None:
            streamed[name] = slot
            continue
        parts, spread[name] = part(slot, tensor, suffix, rows)
        streamed |= {one.name: one for one in parts}
    return streamed, spread


def part(slot: Slot, tensor: str, suffix: str, rows: Rows) -> tuple[list[Slot], list[tuple[str, int]]]:
    """One slot's parts, one after another in its place, and the order in which its rows' bytes go to them."""
    times = slot.shape[0] // sum(count for _, count in rows)
    row_bytes = slot.length // slot.shape[0]
    parts: list[Slot] = []
    offset = slot.offset
    for name in dict.fromkeys(name for name, _ in rows):
        count = times * sum(number for other, number in rows if other == name)
        shape = (count, *slot.shape[1:])
        parts.append(replace(slot, name=f"{tensor}#{name}{suffix}", shape=shape, offset=offset))
        offset += count * row_bytes
    return parts, [(f"{tensor}#{name}{suffix}", count * row_bytes) for name, count in rows]
