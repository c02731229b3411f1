"""Where two described models differ: one entry for each line that only one has, or that has two values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from export.inspect.describe import TABLES, Table

MOST_CHARACTERS = 120  # of a value, for people


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One line of one table. `only` says which side has it; then the other side's value is None."""

    table: str
    key: str
    a: Any
    b: Any
    only: Literal["a", "b"] | None = None

    def line(self) -> str:
        """For people."""
        if self.only is not None:
            side, value = ("A", self.a) if self.only == "a" else ("B", self.b)
            return f"{self.key}: only {side}: {short(value)}"
        return f"{self.key}: {short(self.a)} -> {short(self.b)}"


def short(value: Any) -> str:
    """A value in one line, which is not the whole of a long text."""
    text = repr(value) if isinstance(value, str) and ("\n" in value or not value) else str(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}… ({len(text)} characters)"


def compare(a: Mapping[str, Table | None], b: Mapping[str, Table | None]) -> list[Difference]:
    """All differences, table by table, in the order of the lines. A table that only one side has is one difference."""
    found: list[Difference] = []
    for table in TABLES:
        ours, theirs = a[table], b[table]
        if ours is None or theirs is None:
            if ours is not theirs:
                found.append(_only(table, f"the whole {table}", "a" if theirs is None else "b", "there"))
            continue
        for key in dict.fromkeys((*ours, *theirs)):
            if key not in theirs:
                found.append(_only(table, key, "a", ours[key]))
            elif key not in ours:
                found.append(_only(table, key, "b", theirs[key]))
            elif ours[key] != theirs[key]:
                found.append(Difference(table=table, key=key, a=ours[key], b=theirs[key]))
    return found


def _only(table: str, key: str, side: Literal["a", "b"], value: Any) -> Difference:
    return Difference(
        table=table, key=key, a=value if side == "a" else None, b=value if side == "b" else None, only=side
    )
