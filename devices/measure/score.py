"""A score: what an artifact has kept of the float model, each figure with its interval. A file of `phi-edge score`.

It is read strictly, given to `report` and `gate`, and belongs to measurements of the same artifact by its digest.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devices.errors import MeasurementError
from devices.measure.measurement import ArtifactFacts, DeviceFacts
from export.strict import build

SCHEMA = 1
# What each figure can be.
POSSIBLE: Mapping[str, tuple[float, float]] = {
    "perplexity": (1.0, math.inf),
    "reference_perplexity": (1.0, math.inf),
    "perplexity_ratio": (0.0, math.inf),
    "kl": (0.0, math.inf),
    "top1_agreement": (0.0, 1.0),
    "exact_match": (0.0, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A value and its 95 % interval; `low` and `high` are None where the text has too few blocks for one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """What was read."""

    name: str
    sha256: str  # of the file
    blocks: int
    scored_tokens: int  # that were predicted; what each block reads first is not among them
    left_out: int = 0  # conversations that the artifact's chat template refuses


@dataclass(frozen=True, kw_only=True)
class ReferenceFacts:
    """What the artifact was compared with."""

    name: str
    digest: str | None  # of an artifact; None for a checkpoint
    # A device reports the reference's top ids and the rest as one: that KL is at most the vocabulary's.
    kl_over: Literal["vocabulary", "top 64 and the rest"]


@dataclass(frozen=True, kw_only=True)
class Count:
    """Questions of one kind."""

    asked: int
    right: int


@dataclass(frozen=True, kw_only=True)
class QuestionFacts:
    """What was asked."""

    name: str
    sha256: str  # of the file
    kinds: Mapping[str, Count]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One file of `phi-edge score`. A figure is None where it was not asked for."""

    schema: int
    created_at: str
    artifact: ArtifactFacts
    device: DeviceFacts
    threads: int | None  # as asked for; None is all cores the process may use
    versions: Mapping[str, str]
    text: TextFacts | None
    reference: ReferenceFacts | None
    questions: QuestionFacts | None
    perplexity: Figure | None
    reference_perplexity: Figure | None
    perplexity_ratio: Figure | None  # the artifact's by the reference's, token by token: narrower than either
    kl: Figure | None  # nats a token
    top1_agreement: Figure | None  # share of positions where both prefer the same token
    exact_match: Figure | None  # share of questions answered right

    def measured_on(self, figure: str) -> object:
        """What a figure depends on beside the artifact. Those of two scores say something of each other where this is
        the same."""
        if figure == "exact_match":
            return None if self.questions is None else self.questions.sha256
        text = None if self.text is None else (self.text.sha256, self.text.scored_tokens)
        return text if figure == "perplexity" else (text, self.reference)

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def is_score(content: object) -> bool:
    """Whether a file's JSON is a score's, and not a measurement's."""
    return isinstance(content, dict) and "exact_match" in content


def load_score(content: object, path: Path) -> Score:
    """A file's JSON as a score, strictly. Raises MeasurementError."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        seen = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise MeasurementError(f"{path}: schema {seen!r:.60}; this version reads scores of schema {SCHEMA}; run score")
    score = build(Score, content, str(path), MeasurementError)
    for name, (least, most) in POSSIBLE.items():
        figure: Figure | None = getattr(score, name)
        if figure is None:
            continue
        values = [value for value in (figure.low, figure.value, figure.high) if value is not None]
        if not all(least <= value <= most for value in values) or values != sorted(values):
            seen = ", ".join(f"{value:g}" for value in values)
            allowed = f"{least:g} to {most:g}" if most < math.inf else f"{least:g} or more"
            raise MeasurementError(
                f"{path}: {name}: its low, value and high are {seen}; possible: {allowed}, in rising order; run score"
            )
    return score
