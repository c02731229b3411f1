"""What one row of the quality table has: figures with 95 % intervals, answers, bytes and seconds. A JSON file each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.errors import OptionError
from export.strict import build
from export.verify.score.figures import Figure


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said to one question, greedily."""

    question: str
    said: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row, measured. `made_by` tells whether the measurement is still that of today's code and inputs."""

    name: str
    label: str
    group: str
    engine: str
    command: str
    made_by: str
    tokens: int  # that were predicted
    blocks: int
    bytes: int
    perplexity: Figure
    kl: Figure  # nats a token, against the float model
    top1_agreement: Figure
    answers: Sequence[Answer]
    make_s: float
    read_s: float

    @property
    def megabytes(self) -> float:
        """In units of 10^6 bytes, as everywhere in the table."""
        return self.bytes / 1e6

    @property
    def right(self) -> int:
        """How many of the questions were answered right."""
        return sum(answer.right for answer in self.answers)

    def write(self, file: Path) -> None:
        """As JSON, whole or not at all."""
        part = file.with_suffix(".part")
        part.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")
        part.rename(file)


def read_result(file: Path) -> Result | None:
    """None where the row has not been measured, or by another version of this file."""
    if not file.is_file():
        return None
    try:
        return build(Result, json.loads(file.read_text(encoding="utf-8")), str(file), OptionError)
    except (OptionError, json.JSONDecodeError):
        return None
