"""What a conformance run found: its cases, its greedy decodes, the bounds that they are held to, and the verdict."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from export.artifact import Manifest

Way = Literal["whole", "pieces", "one by one"]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What an artifact may differ by. A difference is in standard deviations of the reference's logits."""

    max_difference: float  # at any length, and at those of `by_length` so much
    mean_kl: float  # nats, over all cases
    reason: str
    by_length: Mapping[int, float] = field(default_factory=dict)

    def at(self, length: int) -> float:
        """The greatest difference that is allowed at this length."""
        return max(self.max_difference, self.by_length.get(length, 0.0))


FLOAT_BOUNDS = Bounds(
    max_difference=1e-3, mean_kl=1e-6, reason="the same arithmetic in float32, in another order of summation"
)
HALF_CACHE_BOUNDS = Bounds(
    max_difference=0.03, mean_kl=1e-5, reason="float32, but for keys and values, which llama.cpp keeps in float16"
)
# The first token of a real model has outliers that a sum in 16 bits puts off further than its rounding tells.
NARROW_BOUNDS = Bounds(
    max_difference=0.1, mean_kl=3e-4, reason="weights and activations rounded to 16 bits in every product"
)
# Of the difference that rounding makes in the reference. The engine's own is another sample of the same errors: in the
# table of docs/fidelity.md it takes 50 to 60 % of what this allows.
MARGIN = 2.0


def bounds_of(manifest: Manifest) -> Bounds:
    """Those of an artifact's own arithmetic, however little it rounds."""
    if "float16" in manifest.scheme.activations:
        return NARROW_BOUNDS
    return HALF_CACHE_BOUNDS if manifest.format == "gguf" else FLOAT_BOUNDS


def with_rounding(bounds: Bounds, rounded: Sequence[Case]) -> Bounds:
    """The same where the engine rounds (see Rounding). `rounded`: the reference that rounds, against the one that does
    not, a case for each length. KL grows with the square of a difference."""
    differences = {case.length: MARGIN * case.relative for case in rounded}
    return Bounds(
        max_difference=max(bounds.max_difference, statistics.median(differences.values())),
        mean_kl=max(bounds.mean_kl, MARGIN**2 * statistics.mean(case.kl for case in rounded)),
        reason=f"{MARGIN:g} times what the engine's rounding makes in the reference, of KL {MARGIN**2:g} times",
        by_length=differences,
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """One length, reached in one way."""

    length: int
    way: Way
    max_difference: float  # |logit - reference's|, in logits
    relative: float  # the same in standard deviations of the reference's logits
    kl: float
    same_top1: bool


@dataclass(frozen=True, kw_only=True)
class Decode:
    """A greedy decode across a boundary, held against the reference token by token."""

    boundary: int
    start: int
    tokens: int
    first_difference: int | None  # index of the first token that the reference would not have chosen
    gap: float | None  # how much lower the reference's logit of that token was than its best one


@dataclass(frozen=True, kw_only=True)
class Report:
    """The verdict and all that it rests on."""

    artifact: str
    digest: str
    checkpoint: str
    reference: str
    scheme: str
    context_tokens: int
    bounds: Bounds
    cases: Sequence[Case]
    decodes: Sequence[Decode]

    @property
    def max_difference(self) -> float:
        return max(case.max_difference for case in self.cases)

    @property
    def relative(self) -> float:
        return max(case.relative for case in self.cases)

    @property
    def mean_kl(self) -> float:
        return sum(case.kl for case in self.cases) / len(self.cases)

    @property
    def top1_agreement(self) -> float:
        return sum(case.same_top1 for case in self.cases) / len(self.cases)

    @property
    def share(self) -> float:
        """The largest share of its bound that anything takes; 1 is all of it."""
        shares = [case.relative / self.bounds.at(case.length) for case in self.cases]
        return max(*shares, self.mean_kl / self.bounds.mean_kl)

    @property
    def failures(self) -> list[str]:
        """Each missed bound in one line."""
        bounds, missed = self.bounds, []
        for case in self.cases:
            if not case.relative <= bounds.at(case.length):
                missed.append(
                    f"length {case.length}, {case.way}: logits differ by {case.relative:.2g} deviations, at most "
                    f"{bounds.at(case.length):.2g} is allowed"
                )
        if not self.mean_kl <= bounds.mean_kl:
            missed.append(f"KL is {self.mean_kl:.2g} nats, at most {bounds.mean_kl:g} is allowed")
        deviation = (
            max(case.max_difference / case.relative for case in self.cases if case.relative) if self.cases else 1
        )
        for decode in self.decodes:
            if decode.gap is not None and not decode.gap <= 2 * bounds.max_difference * deviation:
                missed.append(f"greedy decode across {decode.boundary}: token {decode.first_difference} differs")
        return missed

    def to_json(self) -> str:
        """The report as a file."""
        summary = {
            "passed": not self.failures,
            "failures": self.failures,
            "max_difference": self.max_difference,
            "mean_kl": self.mean_kl,
            "top1_agreement": self.top1_agreement,
        }
        return json.dumps(summary | dataclasses.asdict(self), indent=2) + "\n"
