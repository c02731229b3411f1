"""Conformance: an artifact against its checkpoint's model, at the lengths where others break.

A float artifact must give the reference's logits. An int4 one is held against the float model with the same
dequantised weights, so that only the engine's arithmetic is judged: its int8 activations, its attention, its lengths.
It loads no engine: `Subject` is what it needs of one, and phi_edge/main.py hands it one that runtimes made.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from export.artifact import Artifact
from export.checkpoint.open import Checkpoint, open_checkpoint
from export.errors import ArtifactError
from export.verify.reference import Reference, Rows, open_reference
from export.weights.dequantize import read_weights

Way = Literal["whole", "pieces", "one by one"]
PIECE_TOKENS = 101  # odd and prime: it lines up with no block and no window
NEAR_TOKENS = 16  # how far before a length the tokens are given one by one
DECODE_BEFORE, DECODE_TOKENS = 8, 24  # a greedy decode begins so far before a boundary and crosses it
IDS_SEED = 0


class Subject(Protocol):
    """An opened artifact, ids in and logits out, and the runtime's own greedy decoding over it."""

    @property
    def max_forward_tokens(self) -> int: ...

    def forward(self, ids: Sequence[int], start: int, *, long: bool = False) -> Any:
        """Logits [vocab] after ids at positions start..; see runtimes.engines.engine."""
        ...

    def decode(self, ids: Sequence[int], count: int) -> list[int]:
        """The next `count` greedy tokens, with whatever the runtime does at a boundary."""
        ...

    def close(self) -> None: ...


SubjectOpener = Callable[[Artifact], Subject]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a case may differ by. `max_difference` is in standard deviations of the reference's logits."""

    max_difference: float
    mean_kl: float  # nats, over all cases
    reason: str


FLOAT_BOUNDS = Bounds(
    max_difference=1e-3, mean_kl=1e-6, reason="the same arithmetic in float32, in another order of summation"
)
INT8_BOUNDS = Bounds(
    max_difference=0.5,
    mean_kl=0.02,
    reason="activations rounded to 8 bits, by row or block: each product is off by up to 1/254 of its largest input",
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
    def failures(self) -> list[str]:
        """Each missed bound in one line."""
        bounds, missed = self.bounds, []
        for case in self.cases:
            if not case.relative <= bounds.max_difference:
                missed.append(f"length {case.length}, {case.way}: logits differ by {case.relative:.2g} deviations")
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


def examine(
    artifact: Artifact, checkpoint: str, open_subject: SubjectOpener, *, bounds: Bounds | None = None
) -> Report:
    """Run the whole suite. Raises CheckpointError or ArtifactError where the two do not belong together."""
    opened = open_checkpoint(checkpoint)
    check_source(artifact, opened)
    quantised = artifact.manifest.scheme.bits is not None
    exact = {name: tensor.read() for name, tensor in opened.tensors.items()} if not quantised else {}
    weights = exact or read_weights(artifact)
    reference = open_reference(opened, weights)
    subject = open_subject(artifact)
    try:
        suite = Suite(artifact, opened, reference, subject)
        cases = suite.cases()
        decodes = [suite.decode(boundary) for boundary in suite.boundaries() if suite.fits(boundary)]
    finally:
        subject.close()
    return Report(
        artifact=artifact.folder.name,
        digest=artifact.manifest.digest(),
        checkpoint=opened.name,
        reference=f"{reference.name}, float32, "
        + ("the artifact's own weights dequantised" if quantised else "the checkpoint's weights"),
        scheme=artifact.manifest.scheme.name,
        context_tokens=artifact.manifest.context_tokens,
        bounds=bounds or (INT8_BOUNDS if quantised else FLOAT_BOUNDS),
        cases=cases,
        decodes=decodes,
    )


def check_source(artifact: Artifact, checkpoint: Checkpoint) -> None:
    """The artifact must have been made from these very files."""
    theirs, ours = artifact.manifest.source.files, checkpoint.describe().files
    for name, file in ours.items():
        if name not in theirs or theirs[name].sha256 != file.sha256:
            raise ArtifactError(
                f"{artifact.folder}: was not made from {checkpoint.folder} ({name} differs); give its own checkpoint"
            )


@dataclass
class Suite:
    """One artifact, its reference, and ids for both."""

    artifact: Artifact
    checkpoint: Checkpoint
    reference: Reference
    subject: Subject

    def __post_init__(self) -> None:
        manifest = self.artifact.manifest
        self.context = manifest.context_tokens
        largest = min(manifest.model.vocab_size, *self.artifact.manifest.tokens.stop)
        generator = np.random.default_rng(IDS_SEED)
        self.ids: list[int] = generator.integers(3, max(largest, 4), self.context).tolist()

    def boundaries(self) -> list[int]:
        """Where something changes: the window fills, the original length is reached, the sparse blocks begin."""
        config = self.checkpoint.config
        boundaries = {config.rope.original_context_tokens, *config.boundaries}
        return sorted(boundary for boundary in boundaries if boundary <= self.context)

    def lengths(self) -> list[int]:
        """The lengths where others break, as far as the context goes."""
        config, lengths = self.checkpoint.config, {1, self.context}
        for boundary in config.boundaries:
            lengths |= {boundary - 1, boundary, boundary + 1, boundary + 17}
        original = config.rope.original_context_tokens
        lengths |= {original - 1, original, original + 1, original + 104}
        return sorted(length for length in lengths if 1 <= length <= self.context)

    def is_long(self, length: int) -> bool:
        switch = self.artifact.manifest.rope.switch_tokens
        return switch is not None and length > switch

    def expected(self, ids: Sequence[int], lengths: Sequence[int]) -> dict[int, Any]:
        """The reference's logits at each length: one pass for each side of the long-rope switch."""
        rows: dict[int, Any] = {}
        for long in (False, True):
            side = [length for length in lengths if self.is_long(length) == long]
            if side:
                rows |= dict(zip(side, self.reference.logits(ids[: max(side)], side), strict=True))
        return rows

    def cases(self) -> list[Case]:
        """Every length in every way."""
        lengths = self.lengths()
        expected = self.expected(self.ids, lengths)
        found: list[Case] = []
        ways: tuple[Way, ...] = ("whole", "pieces", "one by one")
        for way in ways:
            reached = 0
            for length in lengths:
                # Whole means from an empty cache; else a longer prompt goes on where the shorter one ended.
                if way == "whole" or self.is_long(length) != self.is_long(reached):
                    reached = 0
                found.append(compare(length, way, self.reach(reached, length, way), expected[length]))
                reached = length
        return found

    def reach(self, start: int, length: int, way: Way) -> Any:
        """The artifact's logits after `length` ids, of which `start` are in; the others are prefilled in this way."""
        most = self.subject.max_forward_tokens
        size = {"whole": most, "pieces": min(PIECE_TOKENS, most), "one by one": most}[way]
        singly = max(start, length - NEAR_TOKENS) if way == "one by one" else length
        logits = None
        while start < length:
            end = min(start + size, singly if start < singly else start + 1)
            logits = self.subject.forward(self.ids[start:end], start, long=self.is_long(length))
            start = end
        assert logits is not None
        return np.array(logits)

    def fits(self, boundary: int) -> bool:
        """Whether a decode can begin before this boundary and end after it."""
        return boundary > DECODE_BEFORE and boundary - DECODE_BEFORE + DECODE_TOKENS <= self.context

    def decode(self, boundary: int) -> Decode:
        """Greedy tokens across a boundary. The reference reads the same tokens; the first difference is reported."""
        start = boundary - DECODE_BEFORE
        tokens = self.subject.decode(self.ids[:start], DECODE_TOKENS)
        ids = [*self.ids[:start], *tokens]
        expected = self.expected(ids, range(start, start + len(tokens)))
        difference, gap = None, None
        for index, token in enumerate(tokens):
            logits = expected[start + index]
            if int(logits.argmax()) != token:
                difference, gap = index, float(logits.max() - logits[token])
                break
        return Decode(boundary=boundary, start=start, tokens=len(tokens), first_difference=difference, gap=gap)


def compare(length: int, way: Way, logits: Any, expected: Any) -> Case:
    """One pair of logits, in float64. NaN anywhere counts as an endless difference."""
    ours, theirs = np.asarray(logits, np.float64), np.asarray(expected, np.float64)
    difference = float(np.abs(ours - theirs).max())
    if not np.isfinite(difference):
        return Case(length=length, way=way, max_difference=np.inf, relative=np.inf, kl=np.inf, same_top1=False)
    ours_log, theirs_log = (part - np.logaddexp.reduce(part) for part in (ours, theirs))
    return Case(
        length=length,
        way=way,
        max_difference=difference,
        relative=difference / float(theirs.std()),
        kl=max(0.0, float((np.exp(theirs_log) * (theirs_log - ours_log)).sum())),
        same_top1=bool(ours.argmax() == theirs.argmax()),
    )


__all__ = ["Bounds", "Case", "Decode", "Report", "Rows", "Subject", "SubjectOpener", "examine"]
