"""Linear layers that the checkpoint has quantised already: found among its tensors, and read as codes, a few rows at a
time. Nothing is quantised here, and nothing is rounded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from export.checkpoint.packings import MIDDLE, Packing, Parts
from export.checkpoint.quantisation import Quantisation
from export.checkpoint.shards import FLOATS, Piece
from export.errors import CheckpointError, not_finite
from export.weights.scratch import Scratch


@dataclass(frozen=True)
class CodeRows:
    """Rows of a matrix: `codes` uint8 [rows, columns]; `scales` [rows, groups] in their stored type; `zeros` uint8
    [rows, groups], the code of zero."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def dequantised(self) -> Tensor:
        """float32 [rows, columns]: (code - zero) * scale, which float32 holds exactly where scales have 16 bits."""
        rows, groups = self.scales.shape
        levels = self.codes.view(rows, groups, -1).float() - self.zeros[:, :, None]
        return (levels * self.scales.float()[:, :, None]).view(rows, -1)


@dataclass(frozen=True)
class QuantisedPiece:
    """One quantised linear layer of the checkpoint, under the name that its weight has in a float checkpoint."""

    name: str
    shape: tuple[int, int]
    group_size: int
    packing: Packing
    parts: Parts

    @property
    def dtype(self) -> torch.dtype:
        """Of its scales."""
        return self.packing.scales(self.parts, 0, 1).dtype

    def code_rows(self, start: int, stop: int) -> CodeRows:
        """Rows start..stop."""
        scales, zeros = self.scales(start, stop), self.packing.zeros(self.parts, start, stop)
        if zeros is None:
            zeros = torch.full(scales.shape, MIDDLE, dtype=torch.uint8)
        return CodeRows(self.packing.codes(self.parts, start, stop), scales, zeros)

    def scales(self, start: int, stop: int) -> Tensor:
        """Those of rows start..stop."""
        return self.packing.scales(self.parts, start, stop)

    def is_symmetric(self) -> bool:
        """Whether the middle code is zero everywhere. Reads every zero point."""
        zeros = self.packing.zeros(self.parts, 0, self.shape[0])
        return zeros is None or bool((zeros == MIDDLE).all())


@dataclass(frozen=True)
class QuantisedTensor:
    """A matrix of the model whose rows lie in one or several quantised layers. It reads as export.checkpoint.shards'
    StoredTensor does, dequantised, and as codes."""

    name: str
    pieces: tuple[QuantisedPiece, ...]
    symmetric: bool

    @property
    def files(self) -> set[Path]:
        return {part.file for piece in self.pieces for part in piece.parts.values()}

    @property
    def group_size(self) -> int:
        return self.pieces[0].group_size

    @property
    def dtype(self) -> torch.dtype:
        """Of its scales."""
        return self.pieces[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(piece.shape[0] for piece in self.pieces), self.pieces[0].shape[1])

    @property
    def row_bytes(self) -> int:
        """Codes and scales of a row, for a progress bar."""
        columns = self.shape[1]
        return columns // 2 + columns // self.group_size * 2

    @property
    def length(self) -> int:
        return self.shape[0] * self.row_bytes

    def code_rows(self, start: int, stop: int) -> CodeRows:
        """Rows start..stop."""
        found, first = list[CodeRows](), 0  # first: the piece's first row
        for piece in self.pieces:
            begin, end = max(start, first), min(stop, first + piece.shape[0])
            if begin < end:
                found.append(piece.code_rows(begin - first, end - first))
            first += piece.shape[0]
        if len(found) == 1:
            return found[0]
        return CodeRows(
            codes=torch.cat([rows.codes for rows in found]),
            scales=torch.cat([rows.scales for rows in found]),
            zeros=torch.cat([rows.zeros for rows in found]),
        )

    def read_rows(self, start: int, stop: int, scratch: Scratch | None = None) -> Tensor:
        """Rows start..stop in float32; `scratch` is not used."""
        return self.code_rows(start, stop).dequantised()

    def read(self) -> Tensor:
        """The whole matrix in float32."""
        return self.read_rows(0, self.shape[0])


_INT32, _INDICES = (torch.int32,), (torch.int32, torch.int64)
# The types that each part may have.
TYPES: Mapping[str, Collection[torch.dtype]] = {
    **dict.fromkeys(("qweight", "qzeros", "weight_packed", "weight_zero_point"), _INT32),
    **dict.fromkeys(("g_idx", "weight_g_idx", "weight_shape"), _INDICES),
    **dict.fromkeys(("scales", "weight_scale"), tuple(FLOATS.values())),
}


def join_parts(
    found: Mapping[str, Piece], expected: Mapping[str, tuple[int, ...]], quantisation: Quantisation
) -> dict[str, Piece | QuantisedPiece]:
    """The checkpoint's tensors, with those of each quantised linear layer joined under the name of its weight. Raises
    CheckpointError where a layer cannot be repacked code for code."""
    joined: dict[str, Piece | QuantisedPiece] = dict(found)
    for name, shape in expected.items():
        path = name.removesuffix(".weight")
        if name in found or f"{path}.{quantisation.packing.codes_name}" not in found:
            continue
        rows, columns = shape
        piece = make_piece(name, (rows, columns), found, quantisation)
        joined[name] = piece
        for part in piece.parts.values():
            del joined[part.name]
        # Some programs give every layer a bias.
        bias = found.get(f"{path}.bias")
        if bias is not None and bias.name not in expected and not bool(bias.read_rows(0, bias.shape[0]).any()):
            del joined[bias.name]
    return joined


def make_piece(
    name: str, shape: tuple[int, int], found: Mapping[str, Piece], quantisation: Quantisation
) -> QuantisedPiece:
    """One layer, its tensors checked."""
    path, packing, group_size = name.removesuffix(".weight"), quantisation.packing, quantisation.group_size
    if shape[1] % group_size:
        raise CheckpointError(
            f"{path}: its {shape[1]} columns do not divide into groups of {group_size}, so its codes cannot be "
            "repacked exactly; give the float checkpoint"
        )
    needed, optional = packing.shapes(*shape, group_size), packing.optional(*shape, group_size)
    if missing := [part for part in (*needed, *quantisation.required) if f"{path}.{part}" not in found]:
        raise CheckpointError(f"{path}: has no {missing[0]}, which {quantisation.method} stores; download it again")
    parts = {part: found[f"{path}.{part}"] for part in (*needed, *optional) if f"{path}.{part}" in found}
    for part, expected in {**needed, **optional}.items():
        if part in parts and parts[part].shape != expected:
            raise CheckpointError(
                f"{path}.{part}: has shape {list(parts[part].shape)}; 4 bits in groups of {group_size} have "
                f"{list(expected)}, and nothing else can be imported"
            )
        if part in parts and parts[part].dtype not in TYPES[part]:
            kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in TYPES[part])
            raise CheckpointError(f"{path}.{part}: has type {parts[part].dtype}; allowed: {kinds}; download it again")
    if "weight_shape" in parts and (stored := parts["weight_shape"].read_rows(0, 2).tolist()) != list(shape):
        raise CheckpointError(f"{path}.weight_shape: says {stored}, and config.json {list(shape)}; download it again")
    refuse_order(path, parts, group_size)
    return QuantisedPiece(name, shape, group_size, packing, parts)


def refuse_order(path: str, parts: Parts, group_size: int) -> None:
    """MatMulNBits has its groups one after another, so that a layer whose columns were taken in another order, those
    of the greatest activations first, has no such codes."""
    for part in ("g_idx", "weight_g_idx"):
        if part in parts:
            columns = parts[part].shape[0]
            if not torch.equal(parts[part].read_rows(0, columns).long(), torch.arange(columns) // group_size):
                raise CheckpointError(
                    f"{path}: its groups are in the order of activations (desc_act, actorder group), which cannot be "
                    "repacked exactly; quantise without it, or give the float checkpoint"
                )


def refuse_scales(tensor: QuantisedTensor, dtype: torch.dtype, *, positive: bool) -> str | None:
    """Why a matrix's scales cannot be stored in `dtype` exactly; None if they can. Reads every scale.

    Raises NumbersError."""
    for piece in tensor.pieces:
        scales = piece.scales(0, piece.shape[0]).float()
        if not bool(scales.isfinite().all()):
            raise not_finite(f"{piece.name.removesuffix('.weight')}, its scales")
        if not torch.equal(scales.to(dtype).float(), scales):
            return f"scales that {str(dtype).removeprefix('torch.')} does not hold exactly"
        if positive and float(scales.min()) <= 0:
            return "scales that are not above 0"
    return None
