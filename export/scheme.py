"""Quantisation schemes: a row of one table.

How to read a name: `fp32` keeps every weight in 32-bit float, `bf16` and `fp16` the matrices in 16. `int4` stores the
weights of every linear layer and of the embedding in 4 bits, symmetric; `uint4` adds a zero point to each block.
`-b32` is the block: so many weights along the input share one scale. `-e8` stores the embedding and the head in 8
bits. The last word is the method by which the codes are found, where it is not data-free: `-weighted` or `-gptq`.
Norms stay float in every scheme.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from export.errors import OptionError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
GGML_BLOCK = 32  # weights in a block of each of llama.cpp's types that have a scheme here
# How codes are found: from the weights alone, weighted by the inputs' mean squares, or with error feedback.
Method = Literal["data-free", "weighted", "gptq"]
FloatType = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How one matrix is stored."""

    bits: int  # 4 or 8
    block_size: int | None  # weights along the input that share a scale; None: a whole row
    symmetric: bool = True  # the middle code stands for 0; if not, each block has a zero point of its own

    def blocks(self, columns: int) -> int:
        """How many blocks a row of so many columns has."""
        return columns // (self.block_size or columns)

    def __str__(self) -> str:
        blocks = "one block a row" if self.block_size is None else f"blocks of {self.block_size}"
        return f"{self.bits} bits, {blocks}" + ("" if self.symmetric else ", zero points")

    def zero_point_bytes(self, columns: int) -> int:
        """Bytes of a row's zero points, of which two of 4 bits lie in a byte."""
        return 0 if self.symmetric else -(-self.blocks(columns) * self.bits // 8)

    def stored_bytes(self, rows: int, columns: int, scale_bytes: int) -> int:
        """Codes, scales and zero points of a matrix."""
        row = columns * self.bits // 8 + self.blocks(columns) * scale_bytes + self.zero_point_bytes(columns)
        return rows * row


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One row; `overrides` are the tensors that a byte budget, or the checkpoint's own quantisation, stores in another
    precision. None means float."""

    name: str
    linear: Precision | None
    table: Precision | None  # the embedding, and a head that reads the same table
    head: Precision | None  # a head of its own
    method: Method = "data-free"
    overrides: Mapping[str, Precision] = field(default_factory=dict)
    float_type: FloatType = "float32"  # of matrices in float; others than float32 are GGUF's alone
    imported: bool = False  # the layers' codes are the checkpoint's own; `method` is for what it has in float

    def precision(self, tensor: str) -> Precision | None:
        """How a matrix of the model is stored, by its name; None in float. (Norms and biases are no matrices.)"""
        if tensor in self.overrides:
            return self.overrides[tensor]
        return {EMBEDDING: self.table, HEAD: self.head}.get(tensor, self.linear)

    @property
    def bits(self) -> int | None:
        """Of the layers' matrices."""
        return self.linear.bits if self.linear else None

    @property
    def block_size(self) -> int | None:
        """Of the layers' matrices."""
        return self.linear.block_size if self.linear else None

    def head_bits(self, *, tied: bool) -> int | None:
        head = self.table if tied else self.head
        return head.bits if head else None

    @property
    def row_table(self) -> bool:
        """Whether the embedding is stored in 8 bits with one scale a row. XNNPACK's linear layer can read that, too, so
        that a tied head needs no bytes of its own."""
        return self.table == Precision(bits=8, block_size=None)

    def for_executorch(self) -> Scheme:
        """The same scheme as XNNPACK has it: 8 bits have one scale a row. Raises OptionError."""
        if self.linear is not None and not self.linear.symmetric:
            raise OptionError(f"scheme {self.name} has zero points, which XNNPACK does not take; use {self.name[1:]}")
        rows = Precision(bits=8, block_size=None)
        table, head = (rows if part and part.bits == 8 else part for part in (self.table, self.head))
        return replace(self, table=table, head=head)

    def for_gguf(self) -> Scheme:
        """The same scheme, where ggml has block types for it. Raises OptionError."""
        sizes = {part.block_size for part in (self.linear, self.table, self.head) if part} - {GGML_BLOCK}
        if sizes:
            fitting = re.sub(r"-b\d+", f"-b{GGML_BLOCK}", self.name)
            raise OptionError(
                f"scheme {self.name} has blocks of {min(map(str, sizes))}, and those of a GGUF file have "
                f"{GGML_BLOCK} weights; use {fitting}"
            )
        return self

    @property
    def embedding_bits(self) -> int | None:
        return self.table.bits if self.table else None

    def refuse_columns(self, columns: int) -> str | None:
        """Why a matrix with so many columns cannot be quantised by this scheme; None if it can."""
        for part in (self.linear, self.table, self.head):
            if part and part.block_size and columns % part.block_size:
                return (
                    f"scheme {self.name} needs matrices whose columns divide by {part.block_size}, this model has "
                    f"{columns}; take a scheme with smaller blocks"
                )
        return None


def _scheme(block_size: int, *, symmetric: bool = True, table_bits: int = 4, method: Method = "data-free") -> Scheme:
    """A row of 4-bit matrices, with the name that the decoder above gives it."""
    name = f"{'int4' if symmetric else 'uint4'}-b{block_size}"
    name += "-e8" if table_bits == 8 else ""
    name += "" if method == "data-free" else f"-{method}"
    linear = Precision(bits=4, block_size=block_size, symmetric=symmetric)
    table = Precision(bits=table_bits, block_size=block_size)
    return Scheme(name=name, linear=linear, table=table, head=table if table_bits == 8 else linear, method=method)


SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="fp32", linear=None, table=None, head=None),
        Scheme(name="bf16", linear=None, table=None, head=None, float_type="bfloat16"),
        Scheme(name="fp16", linear=None, table=None, head=None, float_type="float16"),
        _scheme(32),
        _scheme(64),
        _scheme(128),
        _scheme(32, table_bits=8),
        _scheme(64, table_bits=8),
        _scheme(32, table_bits=8, method="weighted"),
        _scheme(64, table_bits=8, method="weighted"),
        _scheme(32, table_bits=8, method="gptq"),
        _scheme(64, table_bits=8, method="gptq"),
        _scheme(32, symmetric=False, table_bits=8, method="weighted"),
        _scheme(64, symmetric=False, table_bits=8, method="weighted"),
        _scheme(32, symmetric=False, table_bits=8, method="gptq"),
        _scheme(64, symmetric=False, table_bits=8, method="gptq"),
    )
}


def scheme_named(name: str) -> Scheme:
    """The row of that name. Raises OptionError with the known names."""
    if name not in SCHEMES:
        raise OptionError(f"unknown scheme {name!r}; known: {', '.join(SCHEMES)}")
    return SCHEMES[name]
