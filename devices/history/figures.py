"""The figures of one file of a history: what the tables and the pages show of it. They are computed once and kept.

STORE/figures/<code>/<month>.ndjson has a line for each file. It is a copy: it can be removed at any time, and is made
again. <code> is a hash of our own files that define the figures, so that a corrected metric corrects the past.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

from devices.errors import MeasurementError
from devices.measure.heat import Moment, moments
from devices.measure.measurement import load_measurement
from devices.measure.metrics import METRICS
from devices.measure.result import Result
from devices.measure.score import is_score, load_score
from export.strict import read_json
from runtimes.system.cores import available_cores

MANY = 200  # files from which on processes are started to read them
Figure = tuple[float, float | None, float | None, int]  # value, low, high, samples


@dataclass(frozen=True, kw_only=True)
class FileFigures:
    """One file. Of a score, what only a measurement has is None or empty."""

    file: str  # month/hash.json
    created_at: str
    artifact: str
    digest: str
    format: str
    target: str
    scheme: str
    source: str
    device: str
    transport: str
    prompt_tokens: int | None
    generate_tokens: int | None
    threads: int | None
    repetitions: int
    versions: Mapping[str, str]
    metrics: Mapping[str, Figure]
    problems: Sequence[str]
    doubts: Sequence[str]
    moments: Sequence[Moment]  # of the device's processor

    @property
    def made_s(self) -> float | None:
        """When it was made, in seconds since 1970; None where `created_at` is no time that anybody can read."""
        try:
            return datetime.fromisoformat(self.created_at).timestamp()
        except (ValueError, OverflowError, OSError):
            return None


def read_figures(folder: Path, files: Sequence[Path], say: Callable[[str], None]) -> list[FileFigures]:
    """The figures of all files of a store, the oldest first. Raises MeasurementError for a file that is damaged."""
    kept = _kept(folder / "figures" / _code())
    names = {f"{path.parent.name}/{path.name}": path for path in files}
    missing = {name: path for name, path in names.items() if name not in kept}
    if missing:
        if len(missing) > MANY:
            say(f"computing the figures of {len(missing):,} files; they are kept for the next time")
        made = list(_computed(list(missing.values())))
        _keep(folder / "figures" / _code(), made)
        kept |= {each.file: each for each in made}
    return sorted((kept[name] for name in names), key=lambda each: (each.created_at, each.file))


def _computed(paths: Sequence[Path]) -> Iterable[FileFigures]:
    if len(paths) <= MANY:
        return map(figures_of, paths)
    with ProcessPoolExecutor(available_cores(), mp_context=get_context("spawn")) as pool:
        return list(pool.map(figures_of, paths, chunksize=20))


def figures_of(path: Path) -> FileFigures:
    """Read a file strictly and compute its figures. Raises MeasurementError."""
    content = read_json(path, MeasurementError, "it was damaged after it was added; move it away")
    score = load_score(content, path) if is_score(content) else None
    measurement = None if score is not None else load_measurement(content, path)
    result = Result(measurement, score)
    made, workload = measurement or score, measurement.workload if measurement else None
    assert made is not None
    return FileFigures(
        file=f"{path.parent.name}/{path.name}",
        created_at=made.created_at,
        artifact=result.artifact.name,
        digest=result.artifact.digest,
        format=result.artifact.format,
        target=result.artifact.target,
        scheme=result.artifact.scheme,
        source=result.artifact.source,
        device=result.device.name,
        transport=result.device.transport,
        prompt_tokens=workload.prompt_tokens if workload else None,
        generate_tokens=workload.generate_tokens if workload else None,
        threads=workload.threads if workload else None,
        repetitions=len(measurement.repetitions) if measurement else 0,
        versions=made.versions,
        metrics={
            name: (each.value, each.low, each.high, len(each.samples))
            for name, each in result.summaries().items()
            if each is not None
        },
        problems=result.problems,
        doubts=result.doubts,
        moments=moments(measurement) if measurement else (),
    )


def _code() -> str:
    own = sorted((Path(__file__).parents[1] / "measure").glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in [*own, Path(__file__)])).hexdigest()[:16]


def _kept(folder: Path) -> dict[str, FileFigures]:
    """By file; a line that a killed program left half written counts as missing."""
    found = {}
    for month in sorted(folder.glob("*.ndjson")):
        try:
            lines = month.read_bytes().splitlines()
        except OSError:
            continue
        for line in lines:
            try:
                each = FileFigures(**json.loads(line))
                if isinstance(each.created_at, str) and each.metrics.keys() <= METRICS.keys():
                    found[each.file] = each
            except (ValueError, TypeError, AttributeError):
                continue
    return found


def _keep(folder: Path, made: Sequence[FileFigures]) -> None:
    months: dict[str, list[str]] = {}
    for each in made:
        months.setdefault(each.file.partition("/")[0], []).append(json.dumps(dataclasses.asdict(each)) + "\n")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for month, lines in months.items():
            with (folder / f"{month}.ndjson").open("a", encoding="utf-8") as out:
                out.write("\n" + "".join(lines))  # behind a line that was cut off
    except OSError:
        pass  # somebody else's store, or a full disk: they are computed again the next time
