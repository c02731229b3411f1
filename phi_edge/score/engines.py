"""An artifact that is scored: its predictions of a block, and the runtime that answers questions, over one model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol

from devices.measure.measurement import DeviceFacts
from devices.transports.remote_tokens import RemoteTokens
from export.artifact import Artifact
from export.verify.score.blocks import Block
from export.verify.score.losses import BlockLosses, DevicePrediction, Rows, device_losses, losses, wanted_ids
from runtimes.agent.facts import versions
from runtimes.agent.scoring import ScoreRequest
from runtimes.api import Runtime
from runtimes.errors import UnsupportedError
from runtimes.intact import check_intact
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
        self.runtime: Runtime = text_runtime(artifact, loop)
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
    check_intact(artifact)
    with contextlib.closing(open_tokens(artifact, threads=threads)) as loop:
        yield Here(artifact, loop)


class There:
    """On a device: only the log-probabilities of chosen ids come back."""

    kl_over: Literal["vocabulary", "top 64 and the rest"] = "top 64 and the rest"

    def __init__(self, artifact: Artifact, source: RemoteTokens, device: DeviceFacts) -> None:
        self.runtime: Runtime = text_runtime(artifact, source)
        self.device = device
        self._source = source

    @property
    def versions(self) -> Mapping[str, str]:
        """See Scored.versions."""
        return self._source.ready.versions

    def losses(self, block: Block, reference: Rows | None) -> BlockLosses:
        """See Scored.losses."""
        request = ScoreRequest(block.ids[:-1], block.first, wanted_ids(block, reference))
        seen = [DevicePrediction(each.log_probabilities, each.top) for each in self._source.predict(request)]
        return device_losses(block, seen, reference)


@contextlib.contextmanager
def open_there(
    artifact: Artifact,
    name: str,
    lab: Path | None,
    wait_s: float,
    threads: int | None,
    say: Callable[[str], None],
) -> Iterator[There]:
    """The artifact on a device of the lab: leased, staged, loaded, ready. Raises RuntimesError and DeviceError."""
    from devices.drivers.driver import Loading
    from devices.drivers.table import open_driver, open_lab
    from devices.leases.choose import lease_device

    the_lab = open_lab(lab)
    device, job = the_lab.device(name), f"score {artifact.folder.resolve().name}"
    with (
        lease_device(the_lab, name, job, wait_s=wait_s, say=say),
        contextlib.closing(open_driver(name, device)) as driver,
    ):
        driver.stage(artifact, say)
        say("loading")
        opened = driver.open(artifact, Loading(threads=device.threads if threads is None else threads))
        with contextlib.closing(opened.source) as source:
            if not isinstance(source, RemoteTokens):
                raise UnsupportedError(
                    f"device {name}: its runner only generates; score the artifact on this machine, without --device"
                )
            yield There(artifact, source, DeviceFacts(name=name, transport=device.transport))
