"""A measurement: what was asked, what came back with every raw time, and the conditions. No statistic is stored.

Read strictly; the verb writes it aside and renames it, so that a killed bench leaves no half file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devices.errors import MeasurementError
from export.artifact import Artifact
from export.strict import build, read_json
from runtimes.api import MemoryUse
from runtimes.system.conditions import Conditions

SCHEMA = 1
MOST_REPETITIONS = 1000
PageCache = Literal["cold", "warm", "mixed"]
LoadMode = Literal["mmap", "read"]


@dataclass(frozen=True, kw_only=True)
class ServiceFacts:
    """Who ran a model that is no artifact of ours, and what it costs."""

    url: str  # where every prompt and answer went
    input_usd_per_million: float | None  # tokens; None: the lab file has no price
    output_usd_per_million: float | None


@dataclass(frozen=True, kw_only=True)
class StockFacts:
    """Who ran a model that another tool exported, on the device."""

    engine: str
    package: str  # whose version counts; it is in the measurement's versions
    loop: str  # whose generation loop called it
    lacks: Mapping[str, str]  # metric -> why it is not measured


@dataclass(frozen=True, kw_only=True)
class ArtifactFacts:
    """What was measured, from its manifest; or a model that a service runs, with None for what it keeps to itself."""

    name: str  # the folder's, or the model's
    digest: str
    format: str
    target: str
    scheme: str
    source: str
    model_type: str
    parameters: int | None
    context_tokens: int | None
    artifact_bytes: int | None  # all files of the folder
    weights_bytes: int | None
    kv_bytes_per_token: int | None
    provider: str = "cpu"  # the execution provider that it was exported for
    service: ServiceFacts | None = None  # None: it ran on the device
    stock: StockFacts | None = None  # None: it is an artifact of ours, or a service's


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """Where it was measured."""

    name: str
    transport: str


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What every repetition did."""

    prompt_tokens: int
    prompt_sha256: str  # of the prompt's ids
    generate_tokens: int
    repetitions: int
    warmups: int  # requests of the same shape before the measured one, in the same process
    threads: int | None  # as asked for; None is all cores the process may use


@dataclass(frozen=True, kw_only=True)
class Run:
    """One request. Times are since it was accepted, on the clock of the process that holds the model."""

    finish: str
    prompt_tokens: int
    reused_tokens: int
    prefilled_tokens: int
    completion_tokens: int
    prefill_s: float | None
    total_s: float | None
    token_ids_sha256: str
    token_ids: Sequence[int]
    token_at_s: Sequence[float]  # empty where the runner reports only the two below
    memory: MemoryUse
    first_token_s: float | None = None
    last_token_s: float | None = None
    piece_at_s: Sequence[float] = ()  # of a service's stream, whose pieces may have several tokens


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What the same process then made of the prompt whose answer the artifact keeps from its export."""

    tokens: int  # of the kept answer
    agreed: int  # before the first that differs


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """One fresh process: load, warm-up requests, and the measured request."""

    page_cache: PageCache | None  # of the artifact's weights when the process started; None where it is unknown
    cached_share: float | None  # of their bytes
    load_s: float | None  # process start to ready line; None where the device cannot say
    open_s: float | None  # the part of it that opened the artifact
    load_mode: LoadMode | None  # are the weights' files mapped into the process?
    warmups: Sequence[Run]
    run: Run
    session: int = 0  # repetitions of one session follow one another, without a restart or another artifact between
    entered: Conditions | None = None  # just before the process was started, where the device had to be ready
    left: Conditions | None = None  # just after it had ended
    waited_s: float | None = None  # until the device was ready
    energy_j: float | None = None  # of the whole machine during the measured request; None where it cannot tell
    energy_source: str | None = None  # what told it, and of what
    reference: Followed | None = None  # None: the artifact keeps no answer, or the device's runner takes no ids
    versions: Mapping[str, str] | None = None
    accelerator: str | None = None


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A repetition that was not made, because the device did not become ready for it in time."""

    number: int  # of the repetition, from 0
    waited_s: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One file of `phi-edge bench`."""

    schema: int
    created_at: str
    artifact: ArtifactFacts
    device: DeviceFacts
    workload: Workload
    versions: Mapping[str, str]
    before: Conditions
    after: Conditions
    repetitions: Sequence[Repetition]
    accelerator: str | None = None  # the graphics adapter that computed; None is the CPU
    dropped: Sequence[Dropped] = ()
    failures: Sequence[str] = ()  # of tries that were made again: a cut wire, a crash
    pair: str | None = None  # the same in two measurements whose sessions took turns

    def to_json(self) -> str:
        """The text of the file; lists of numbers take one line each."""
        text = json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False)
        return re.sub(r"\[\n\s+([-+.\deE,\s]*?)\s+\]", lambda list_: f"[{' '.join(list_[1].split())}]", text) + "\n"


def sha256_ids(ids: Sequence[int]) -> str:
    """SHA-256 of token ids written as decimal numbers with commas."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def describe_artifact(artifact: Artifact) -> ArtifactFacts:
    """The facts of an artifact that a measurement carries."""
    manifest = artifact.manifest
    return ArtifactFacts(
        name=artifact.folder.resolve().name,
        digest=manifest.digest(),
        format=manifest.format,
        target=manifest.target,
        scheme=manifest.scheme.name,
        source=manifest.source.name,
        model_type=manifest.source.model_type,
        parameters=manifest.model.parameters,
        context_tokens=manifest.context_tokens,
        artifact_bytes=sum(file.bytes for file in manifest.files.values()),
        weights_bytes=manifest.memory.weights_bytes,
        kv_bytes_per_token=manifest.memory.kv_bytes_per_token,
        provider=str(manifest.engine.get("provider") or "cpu"),
    )


def read_measurement(path: Path) -> Measurement:
    """Read a file of `phi-edge bench`, strictly. Raises MeasurementError."""
    return load_measurement(read_json(path, MeasurementError, "give a file of `phi-edge bench`"), path)


def load_measurement(content: object, path: Path) -> Measurement:
    """A file's JSON as a measurement, strictly. Raises MeasurementError."""
    if isinstance(content, dict) and "source" in content and "files" in content:
        raise MeasurementError(f"{path}: is the manifest of an artifact; give a file of `phi-edge bench`")
    if not isinstance(content, dict) or "repetitions" not in content or content.get("schema") != SCHEMA:
        seen = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise MeasurementError(
            f"{path}: schema {seen!r:.60}; this version reads measurements of schema {SCHEMA}; run bench"
        )
    measurement = build(Measurement, content, str(path), MeasurementError)
    count = len(measurement.repetitions)
    if not 1 <= count <= MOST_REPETITIONS:
        raise MeasurementError(
            f"{path}: has {count or 'no'} repetitions; allowed: 1 to {MOST_REPETITIONS}; run bench again"
        )
    for number, repetition in enumerate(measurement.repetitions, start=1):
        run = repetition.run
        if run.first_token_s is None and len(run.token_ids) != len(run.token_at_s):
            raise MeasurementError(
                f"{path}: repetition {number} has ids and times of different length; run bench again"
            )
    return measurement
