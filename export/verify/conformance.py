"""Conformance: an artifact against its checkpoint's model, at the lengths where others break.

A float artifact must give the reference's logits. An int4 one is held against the float model with the same
dequantised weights, so that only the engine's arithmetic is judged: its attention, its lengths, its int8 activations.
How far those may put it off is measured on the reference, which rounds as the engine does.
It loads no engine: `Subject` is what it needs of one, and runtimes/subject.py makes one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from export.adapters.merge import check_merged, merge_adapters
from export.artifact import Artifact
from export.checkpoint.open import Checkpoint, open_checkpoint
from export.errors import ArtifactError
from export.request import AdapterChoice
from export.texts import HELD_OUT
from export.texts.documents import read_documents
from export.verify.conformance_report import Case, Decode, Report, Way, bounds_of, with_rounding
from export.verify.reference import Reference, open_reference
from export.verify.rounding import rounding_of
from export.weights.calibration import Encoder
from export.weights.dequantize import read_weights
from export.weights.on_demand import WeightsOnDemand

WHOLE_BYTES = 1 << 25  # of the widest activations, in a prompt's largest calls: 512 tokens of Phi-3-mini's
PIECE_TOKENS = 101  # odd and prime: it lines up with no block and no window
NEAR_TOKENS = 16  # how far before a length the tokens are given one by one
DECODE_BEFORE, DECODE_TOKENS = 8, 24  # a greedy decode begins so far before a boundary and crosses it
BETWEEN = 16  # lengths from 1 to the last, at which the cost of rounding is measured beside the checked ones


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


def examine(
    artifact: Artifact,
    checkpoint: str,
    open_subject: SubjectOpener,
    *,
    adapters: Sequence[AdapterChoice] = (),
) -> Report:
    """Run the whole suite. Raises CheckpointError, AdapterError or ArtifactError where artifact, checkpoint and
    adapters do not belong together."""
    opened = merge_adapters(open_checkpoint(checkpoint), adapters)
    check_source(artifact, opened)
    quantised = artifact.manifest.scheme.bits is not None
    weights = read_weights(artifact) if quantised else checkpoint_weights(opened)
    suite = Suite(artifact, opened)
    # The engine is closed before the reference starts: memory never holds both.
    subject = open_subject(artifact)
    try:
        seen = suite.run(subject)
    finally:
        subject.close()
    reference = open_reference(opened, weights)
    exact = suite.expected(reference)
    cases = [compare(each.length, each.way, each.logits, exact[each.length]) for each in seen.reached]
    decodes = [suite.follow(decoded, reference) for decoded in seen.decoded]
    bounds = bounds_of(artifact.manifest)
    if (rounding := rounding_of(artifact)) is not None:
        rounded = suite.expected(open_reference(opened, weights, rounding))
        bounds = with_rounding(bounds, [compare(length, "whole", rounded[length], exact[length]) for length in exact])
    return Report(
        artifact=artifact.folder.name,
        digest=artifact.manifest.digest(),
        checkpoint=opened.name,
        reference=f"{reference.name}, float32, "
        + ("the artifact's own weights dequantised" if quantised else "the checkpoint's weights"),
        scheme=artifact.manifest.scheme.name,
        context_tokens=artifact.manifest.context_tokens,
        bounds=bounds,
        cases=cases,
        decodes=decodes,
    )


def checkpoint_weights(checkpoint: Checkpoint) -> WeightsOnDemand:
    """The checkpoint's own tensors."""
    return WeightsOnDemand({name: tensor.read for name, tensor in checkpoint.tensors.items()})


def check_source(artifact: Artifact, checkpoint: Checkpoint) -> None:
    """The artifact must have been made from these very files."""
    made_from, source = artifact.manifest.source, checkpoint.describe()
    theirs = made_from.files
    for name, file in source.files.items():
        if name not in theirs or theirs[name].sha256 != file.sha256:
            raise ArtifactError(
                f"{artifact.folder}: was not made from {checkpoint.folder} ({name} differs); give its own checkpoint"
            )
    check_merged(artifact, source.adapters)


@dataclass(frozen=True)
class Reached:
    """The artifact's logits after `length` ids, prefilled in one way."""

    length: int
    way: Way
    logits: Any


@dataclass(frozen=True)
class Decoded:
    """The artifact's greedy tokens after the first `start` ids."""

    boundary: int
    start: int
    tokens: Sequence[int]


@dataclass(frozen=True)
class Seen:
    """All that the artifact gave."""

    reached: Sequence[Reached]
    decoded: Sequence[Decoded]


@dataclass
class Suite:
    """What an artifact is asked, and how the answers are judged."""

    artifact: Artifact
    checkpoint: Checkpoint

    def __post_init__(self) -> None:
        manifest = self.artifact.manifest
        self.context = manifest.context_tokens
        self.ids = text_ids(self.checkpoint, self.context)

    def run(self, subject: Subject) -> Seen:
        """Every length in every way, then a greedy decode across every boundary."""
        reached: list[Reached] = []
        ways: tuple[Way, ...] = ("whole", "pieces", "one by one")
        for way in ways:
            start = 0
            for length in self.lengths():
                # Whole means from an empty cache; else a longer prompt goes on where the shorter one ended.
                if way == "whole" or self.is_long(length) != self.is_long(start):
                    start = 0
                reached.append(Reached(length, way, self.reach(subject, start, length, way)))
                start = length
        starts = {boundary: boundary - DECODE_BEFORE for boundary in self.boundaries() if self.fits(boundary)}
        decoded = [
            Decoded(boundary, start, subject.decode(self.ids[:start], DECODE_TOKENS))
            for boundary, start in starts.items()
        ]
        return Seen(reached, decoded)

    def boundaries(self) -> list[int]:
        """Where something changes: the window fills, the original length is reached, the sparse blocks begin, the cache
        is full and keeps only the window from there on."""
        config, kept = self.checkpoint.config, self.artifact.manifest.memory.kept_tokens
        boundaries = {config.rope.original_context_tokens, *config.boundaries, *([kept] if kept else [])}
        return sorted(boundary for boundary in boundaries if boundary <= self.context)

    def lengths(self) -> list[int]:
        """The lengths where others break, as far as the context goes."""
        config, lengths = self.checkpoint.config, {1, self.context}
        for boundary in config.boundaries:
            lengths |= {boundary - 1, boundary, boundary + 1, boundary + 17}
        original = config.rope.original_context_tokens
        lengths |= {original - 1, original, original + 1, original + 104}
        if kept := self.artifact.manifest.memory.kept_tokens:
            lengths |= {kept + 1, kept + 17}
        return sorted(length for length in lengths if 1 <= length <= self.context)

    def is_long(self, length: int) -> bool:
        switch = self.artifact.manifest.rope.switch_tokens
        return switch is not None and length > switch

    def expected(self, reference: Reference) -> dict[int, Any]:
        """The reference's logits at each length, and at some between, which its pass has anyway."""
        between = np.linspace(1, self.context, BETWEEN, dtype=int).tolist()
        return self.rows(reference, self.ids, sorted({*self.lengths(), *between}))

    def rows(self, reference: Reference, ids: Sequence[int], lengths: Sequence[int]) -> dict[int, Any]:
        """The reference's logits after so many ids: one pass for each side of the long-rope switch."""
        rows: dict[int, Any] = {}
        for long in (False, True):
            side = [length for length in lengths if self.is_long(length) == long]
            if side:
                rows |= dict(zip(side, reference.logits(ids[: max(side)], side), strict=True))
        return rows

    def reach(self, subject: Subject, start: int, length: int, way: Way) -> Any:
        """The artifact's logits after `length` ids, of which `start` are in; the others are prefilled in this way."""
        config = self.checkpoint.config
        wide = WHOLE_BYTES // (config.intermediate_size * np.dtype(np.float32).itemsize * 2)
        most = min(subject.max_forward_tokens, max(wide, PIECE_TOKENS))
        size = min(PIECE_TOKENS, most) if way == "pieces" else most
        singly = max(start, length - NEAR_TOKENS) if way == "one by one" else length
        logits = None
        while start < length:
            end = min(start + size, singly if start < singly else start + 1)
            logits = subject.forward(self.ids[start:end], start, long=self.is_long(length))
            start = end
        assert logits is not None
        return np.array(logits)

    def fits(self, boundary: int) -> bool:
        """Whether a decode can begin before this boundary and end after it."""
        return boundary > DECODE_BEFORE and boundary - DECODE_BEFORE + DECODE_TOKENS <= self.context

    def follow(self, decoded: Decoded, reference: Reference) -> Decode:
        """The reference reads the tokens that the artifact chose; the first that it would not have is reported."""
        start, tokens = decoded.start, decoded.tokens
        expected = self.rows(reference, [*self.ids[:start], *tokens], range(start, start + len(tokens)))
        difference, gap = None, None
        for index, token in enumerate(tokens):
            logits = expected[start + index]
            if int(logits.argmax()) != token:
                difference, gap = index, float(logits.max() - logits[token])
                break
        return Decode(boundary=decoded.boundary, start=start, tokens=len(tokens), first_difference=difference, gap=gap)


def text_ids(checkpoint: Checkpoint, count: int) -> list[int]:
    """So many ids of the held-out text, from its beginning again where it ends: on random ids a trained model gives
    much the same logits whatever came before."""
    encoded = Encoder(checkpoint).encode(read_documents(HELD_OUT))
    return list(itertools.islice(itertools.cycle(itertools.chain.from_iterable(encoded)), count))


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
