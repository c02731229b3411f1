"""What an examination finds: one line for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One fault, or something that cannot be read. One line: what it is about, what was seen, what it should be, and
    what helps."""

    state: Literal["wrong", "unknown"]
    what: str
    seen: str
    should: str
    fix: str

    def line(self) -> str:
        """For people."""
        return f"{self.state}: {self.what}: {self.seen}; {self.should}; {self.fix}"
