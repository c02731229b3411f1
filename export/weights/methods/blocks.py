"""ggml's block types, as a GGUF file has them: of every 32 weights of a row the scale, then the codes, in one piece.

Q4_1 stores the least value of a block, not its zero point; both are in float16. That value is the product of scale and
zero point, exactly, because the scales of these blocks are searched with so few digits: see Levels.MINIMUM.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from export.weights.methods.quantize import Levels, QuantisedRows
from export.weights.slots import BLOCK_WEIGHTS, BlockType

LEVELS: Mapping[BlockType, Levels] = {"Q4_0": Levels.SIGNED, "Q4_1": Levels.MINIMUM, "Q8_0": Levels.POSITIVE}


def pack_blocks(rows: QuantisedRows, kind: BlockType) -> Tensor:
    """uint8 [rows, bytes of a row]."""
    count = len(rows.codes)
    codes = rows.codes.view(count, -1, BLOCK_WEIGHTS)
    scales = _for_each_block(rows.scales, codes)
    parts = [_as_bytes(scales)]
    if kind == "Q4_1":
        assert rows.zero_points is not None
        parts.append(_as_bytes(-scales * _for_each_block(rows.zero_points, codes)))
    if kind == "Q8_0":
        parts.append(codes ^ 0x80)
    else:  # weight i is in the low half of byte i, weight 16 + i in the high half
        parts.append(codes[..., :16] | codes[..., 16:] << 4)
    return torch.cat(parts, dim=-1).view(count, -1)


def _for_each_block(values: Tensor, codes: Tensor) -> Tensor:
    """Values [rows, blocks of any size] -> float32 [rows, blocks of 32]."""
    return values.float().repeat_interleave(codes.shape[1] // values.shape[1], dim=1)


def _as_bytes(values: Tensor) -> Tensor:
    """float32 [rows, blocks] -> float16, uint8 [rows, blocks, 2]."""
    return values.half()[..., None].view(torch.uint8)
