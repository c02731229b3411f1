"""An artifact that is scored: its predictions of a block, and the runtime that answers questions, over one model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

from devices.measure.measurement import DeviceFacts
from export.artifact import Artifact
from export.verify.score.blocks import Block
from export.verify.score.losses import BlockLosses, Rows, losses
from runtimes.agent.facts import versions
from runtimes.api import Runtime
from runtimes.loop.loop import TokenLoop
from runtimes.registry import open_tokens, text_runtime


class Scored(Protocol):
    """A loaded artifact, in this process or on a device."""

    device: DeviceFacts
    runtime: Runtime
    kl_over: Literal["vocabulary", "top 64 and the rest"]

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the libraries that the model's process has loaded."""
        ...

    def losses(self, block: Block, reference: Rows | None) -> BlockLosses:
        """What the artifact's predictions of this block are worth. Raises RuntimesError and ArtifactError."""
        ...


class Here:
    """In this process: every logit can be looked at."""

    device = DeviceFacts(name="local", transport="process")
    kl_over: Literal["vocabulary", "top 64 and the rest"] = "vocabulary"

    def __init__(self, artifact: Artifact, loop: TokenLoop) -> None:
        self.runtime = text_runtime(artifact, loop)
        self._loop = loop

    @property
    def versions(self) -> Mapping[str, str]:
        """See Scored.versions."""
        return versions()

    def losses(self, block: Block, reference: Rows | None) -> BlockLosses:
        """See Scored.losses."""
        return losses(block, self._loop.logits_along(block.ids[:-1], block.first), reference)


@contextlib.contextmanager
def open_here(artifact: Artifact, threads: int | None) -> Iterator[Here]:
    """The artifact in its own engine. Raises RuntimesError."""
    with contextlib.closing(open_tokens(artifact, threads=threads)) as loop:
        yield Here(artifact, loop)
