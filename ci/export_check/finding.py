"""What a check of an export found, and the one exit code of all findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# "error": it could not be judged. "note" and "doubt" are shown and fail nothing.
Outcome = Literal["pass", "missed", "error", "note", "doubt"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the outcome."""

    step: str  # export, check, plan, score, bench, limits or baseline
    name: str  # the limit or the figure; for a whole command its verb
    outcome: Outcome
    said: str


def exit_code(findings: Sequence[Finding]) -> int:
    """2 where something could not be judged, else 1 where a limit is missed, else 0."""
    outcomes = {finding.outcome for finding in findings}
    return 2 if "error" in outcomes else 1 if "missed" in outcomes else 0
