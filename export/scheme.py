"""Quantisation schemes: a row of one table.

How to read a name: `fp32` keeps every weight in 32-bit float. `int4-b32` stores the weights of every linear layer and
of the embedding in 4 bits, symmetric, with one scale for each block of 32 weights along the input; `-e8` at the end
stores the embedding in 8 bits. Norms stay float in every scheme.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from export.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One row. None means float."""

    name: str
    bits: int | None
    block_size: int | None
    embedding_bits: int | None

    def refuse_columns(self, columns: int) -> str | None:
        """Why a matrix with so many columns cannot be quantised by this scheme; None if it can."""
        if self.block_size and columns % self.block_size:
            return (
                f"scheme {self.name} needs matrices whose columns divide by {self.block_size}, this model has {columns}"
            )
        return None


def _int4(name: str, block_size: int, embedding_bits: int = 4) -> Scheme:
    return Scheme(name=name, bits=4, block_size=block_size, embedding_bits=embedding_bits)


SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="fp32", bits=None, block_size=None, embedding_bits=None),
        _int4("int4-b32", 32),
        _int4("int4-b64", 64),
        _int4("int4-b128", 128),
        _int4("int4-b32-e8", 32, embedding_bits=8),
        _int4("int4-b64-e8", 64, embedding_bits=8),
    )
}


def scheme_named(name: str) -> Scheme:
    """The row of that name. Raises OptionError with the known names."""
    if name not in SCHEMES:
        raise OptionError(f"unknown scheme {name!r}; known: {', '.join(SCHEMES)}")
    return SCHEMES[name]
