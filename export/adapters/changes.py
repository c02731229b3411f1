"""What an adapter does to some rows of one tensor of the base, a few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from export.checkpoint.shards import Piece

# Of A and B, what is multiplied at once: bounds the memory for any rank.
RANKS_AT_ONCE = 64


class Change(Protocol):
    """`first` and `count` say which rows of the tensor it changes."""

    @property
    def adapter(self) -> str:
        """The adapter's name, for messages."""
        ...

    @property
    def first(self) -> int: ...

    @property
    def count(self) -> int: ...

    def apply(self, rows: Tensor, start: int, stop: int) -> None:
        """Change `rows` in place, float32: start..stop of the rows that this changes."""
        ...


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Adds scale * B @ A; with a magnitude (DoRA), then gives each row that length."""

    adapter: str
    first: int
    a: Piece  # [rank, columns]
    b: Piece  # [rows, rank]
    scale: float
    magnitude: Piece | None = None  # [rows]

    @property
    def count(self) -> int:
        return self.b.shape[0]

    def apply(self, rows: Tensor, start: int, stop: int) -> None:
        """See Change."""
        b = self.b.read_rows(start, stop)
        for rank in range(0, self.a.shape[0], RANKS_AT_ONCE):
            end = min(rank + RANKS_AT_ONCE, self.a.shape[0])
            rows.addmm_(b[:, rank:end].float(), self.a.read_rows(rank, end).float(), alpha=self.scale)
        if self.magnitude is not None:
            rows.mul_((self.magnitude.read_rows(start, stop).float() / rows.norm(dim=1))[:, None])


@dataclass(frozen=True, kw_only=True)
class EmbeddingLowRank:
    """The same for a table, whose rows are A's columns."""

    adapter: str
    first: int
    a: Piece  # [rank, rows]
    b: Piece  # [columns, rank]
    scale: float

    @property
    def count(self) -> int:
        return self.a.shape[1]

    def apply(self, rows: Tensor, start: int, stop: int) -> None:
        """See Change."""
        a = self.a.read_columns(start, stop)
        for rank in range(0, len(a), RANKS_AT_ONCE):
            end = min(rank + RANKS_AT_ONCE, len(a))
            rows.addmm_(a[rank:end].float().T, self.b.read_columns(rank, end).float().T, alpha=self.scale)


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """Trained and saved whole: modules_to_save, and biases."""

    adapter: str
    first: int
    piece: Piece

    @property
    def count(self) -> int:
        return self.piece.shape[0]

    def apply(self, rows: Tensor, start: int, stop: int) -> None:
        """See Change."""
        rows.copy_(self.piece.read_rows(start, stop))


@dataclass(frozen=True, kw_only=True)
class AddedBias:
    """Adds scale * the bias of B."""

    adapter: str
    first: int
    piece: Piece
    scale: float

    @property
    def count(self) -> int:
        return self.piece.shape[0]

    def apply(self, rows: Tensor, start: int, stop: int) -> None:
        """See Change."""
        rows.add_(self.piece.read_rows(start, stop), alpha=self.scale)


@dataclass(frozen=True, kw_only=True)
class TrainedRows:
    """Some tokens' rows of a table: row i of `piece` is that of token ids[i]."""

    adapter: str
    count: int  # of the whole table
    piece: Piece
    ids: tuple[int, ...]
    first: int = 0

    def apply(self, rows: Tensor, start: int, stop: int) -> None:
        """See Change."""
        for place, id in enumerate(self.ids):
            if start <= id < stop:
                rows[id - start] = self.piece.read_rows(place, place + 1)[0]
