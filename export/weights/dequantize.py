"""The weights that an artifact really holds, read back from its weight files in float32: codes times scales."""

from __future__ import annotations

from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from export.artifact import Artifact
from export.errors import ArtifactError
from export.weights.layout_file import TensorLayout, read_layout
from export.weights.on_demand import WeightsOnDemand
from export.weights.slots import DTYPES, Kind, Slot, SlotId


def read_weights(artifact: Artifact) -> WeightsOnDemand:
    """Every tensor of the model by its name, float32, as the artifact's engine multiplies with it. A tied lm_head that
    the format quantised anew is among them. Raises ArtifactError where the artifact does not say where they are."""
    tensors = read_layout(artifact)
    return WeightsOnDemand({tensor.name: partial(read_tensor, artifact.folder, tensor) for tensor in tensors})


def read_tensor(folder: Path, tensor: TensorLayout) -> Tensor:
    """One tensor, dequantised where it is quantised. Raises ArtifactError for slots that do not make one."""
    try:
        return _multiplied(folder, tensor)
    except (KeyError, IndexError, RuntimeError, StopIteration, ValueError, ZeroDivisionError) as error:
        message = f"{folder}: the slots of {tensor.name:.200} do not make a tensor; export it again"
        raise ArtifactError(message) from error


def _multiplied(folder: Path, tensor: TensorLayout) -> Tensor:
    if (blocks := tensor.slots.get(SlotId(tensor.name, "blocks"))) is not None:
        return read_blocks(folder, blocks).reshape(tensor.shape)
    if tensor.bits is None:
        return read_kind(folder, tensor, "weight")[0].float().reshape(tensor.shape)
    rows = tensor.shape[0]
    packed, slot = read_kind(folder, tensor, "codes")
    scales = read_kind(folder, tensor, "scales")[0].float().reshape(rows, -1)
    codes = unpack(packed, tensor.bits, slot).float().reshape(rows, scales.shape[1], -1)
    if tensor.zero_points:
        points, slot = read_kind(folder, tensor, "zero_points")
        # Of an odd number of 4-bit zero points the last byte of a row has one.
        codes -= unpack(points, tensor.bits, slot).float().reshape(rows, -1)[:, : scales.shape[1], None]
    codes *= scales[:, :, None]
    return codes.reshape(tensor.shape)


def read_blocks(folder: Path, slot: Slot) -> Tensor:
    """ggml's blocks, dequantised by its own library: float32 [rows, columns]."""
    import gguf
    import numpy as np

    data = np.frombuffer(stored(folder, slot), np.uint8).reshape(slot.shape)
    return torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType[slot.block_type or ""]))


def read_kind(folder: Path, tensor: TensorLayout, kind: Kind) -> tuple[Tensor, Slot]:
    """A tensor's items of one kind in their stored type, flat, in the order of its rows; and one of their slots."""
    parts = {id.part: slot for id, slot in tensor.slots.items() if id.kind == kind}
    if not tensor.rows:
        slot = tensor.slots[SlotId(tensor.name, kind)]
        return torch.frombuffer(bytearray(stored(folder, slot)), dtype=DTYPES[slot.dtype]), slot
    unread = {part: memoryview(stored(folder, slot)) for part, slot in parts.items()}
    total, data, turns = sum(map(len, unread.values())), bytearray(), cycle(tensor.rows)
    row_bytes = total // tensor.shape[0]
    while len(data) < total:
        part, count = next(turns)
        piece, unread[part] = unread[part][: count * row_bytes], unread[part][count * row_bytes :]
        if not piece:
            raise ValueError(f"no rows are left in {part}")
        data += piece
    slot = next(iter(parts.values()))
    return torch.frombuffer(data, dtype=DTYPES[slot.dtype]), slot


def stored(folder: Path, slot: Slot) -> bytes:
    """A slot's bytes."""
    with (folder / slot.file).open("rb") as file:
        file.seek(slot.offset)
        return file.read(slot.length)


def unpack(packed: Tensor, bits: int, slot: Slot) -> Tensor:
    """Codes around 0 as int8, for the codes of a head are a hundred million: see QuantisedRows.pack."""
    if bits == 8:
        return packed if slot.dtype == "int8" else (packed ^ 128).view(torch.int8)
    low, high = packed & 15, packed >> 4
    pair = (high, low) if slot.even_high else (low, high)
    return torch.stack(pair, dim=-1).flatten().view(torch.int8) - 8
