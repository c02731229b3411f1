"""The check file: what is exported, with which options, and what it is judged by. Read strictly.

checkpoint = "tiny"                               # as for `phi-edge export`
export = ["--target", "cpu"]                      # options of `phi-edge export`
check = ["--against", "tiny"]                     # of `phi-edge check`; left out: only the files are verified
score = ["--against", "tiny", "--tokens", "4096"] # of `phi-edge score`; left out: quality is not measured
bench = ["--reps", "10"]                          # of `phi-edge bench`; left out: speed is not measured
budgets = "budgets.toml"                          # as for `phi-edge gate`: speed, memory, quality; left out: no limits

[limits]                                          # of the manifest, known before anything is run
max_artifact_bytes = 3_000_000
max_memory_bytes = 200_000_000                    # by the memory plan, when the context is full
max_outside_nodes = 0                             # nodes that the accelerator does not run

The commands run in the file's folder: its paths begin there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.judge.budgets import Budgets, read_budgets
from export.errors import ExportError
from export.strict import build, read_toml

# Options that check_export.py gives itself, or that would leave nothing to judge.
OWN: Mapping[str, Sequence[str]] = {
    "export": ("--dry-run",),
    "check": ("--json",),
    "score": ("--json",),
    "bench": ("--out", "--out-dir"),
}


class CheckFileError(ExportError):
    """The check file cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of what the manifest says. None is no limit."""

    max_artifact_bytes: int | None = None
    max_memory_bytes: int | None = None
    max_outside_nodes: int | None = None


@dataclass(frozen=True, kw_only=True)
class CheckFile:
    """The file's content; what is None is not done."""

    checkpoint: str | None = None
    export: Sequence[str] = ()
    check: Sequence[str] = ()
    score: Sequence[str] | None = None
    bench: Sequence[str] | None = None
    budgets: str | None = None
    limits: Limits = Limits()

    def options(self, verb: str) -> Sequence[str] | None:
        """The options of one verb of `phi-edge`."""
        return {"export": self.export, "check": self.check, "score": self.score, "bench": self.bench}[verb]


def read_check_file(path: Path) -> CheckFile:
    """Raises CheckFileError."""
    check = build(CheckFile, read_toml(path, CheckFileError), str(path), CheckFileError)
    for verb, own in OWN.items():
        for option in check.options(verb) or ():
            if option.partition("=")[0] in own:
                raise CheckFileError(f"{path}: {verb}: {option!r:.60} is not for a check; take it out")
    if check.budgets is not None and check.score is None and check.bench is None:
        raise CheckFileError(f"{path}: budgets has limits for nothing; add score, bench or both")
    return check


def read_limits(check: CheckFile, folder: Path) -> Budgets | None:
    """The budget file, if there is one. Raises BudgetError."""
    return read_budgets(folder / check.budgets) if check.budgets is not None else None
