"""Many measurements against many: a candidate's baseline is the one of the same artifact, device and workload.

Artifacts are the same by their folder's name: the new one's digest differs. Nothing is skipped silently: what the
baseline has and nobody measured now is a failure, and so is a cell of a job that ended without a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.errors import MeasurementError
from devices.judge.compare import Comparison, compare
from devices.judge.noise import Floors
from devices.measure.measurement import Measurement, load_measurement
from devices.measure.result import is_file_of_results
from export.strict import build, read_json

CELLS = "cells.json"


@dataclass(frozen=True, kw_only=True)
class CellFacts:
    """A cell of `lab run`, as it is in cells.json."""

    artifact: str
    device: str
    prompt_tokens: int
    generate_tokens: int
    state: str
    reason: str | None
    file: str | None


@dataclass(frozen=True, kw_only=True)
class Matched:
    """All comparisons of two sets, by a label; and what has no counterpart."""

    comparisons: Mapping[str, Comparison]
    new: Sequence[str] = ()  # without a baseline: nothing to compare with yet
    missing: Sequence[str] = ()  # of the baseline, and not measured now, with the reason where it is known

    @property
    def is_good(self) -> bool:
        """No regression, nothing invalid, nothing missing."""
        return not self.missing and all(each.is_good for each in self.comparisons.values())


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Files as they are; of a folder, its measurements and scores, by name. Raises MeasurementError."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        own = [file for file in sorted(path.glob("*.json")) if file.name != CELLS and is_file_of_results(file)]
        if not own:
            raise MeasurementError(f"{path}: has no measurement; give a folder of `bench --out-dir` or `lab run`")
        found += own
    return found


def unmeasured_of(paths: Sequence[Path]) -> dict[str, str]:
    """The cells of `lab run` without a measurement, in these folders: label -> state and reason."""
    found = {}
    for path in paths:
        file = path / CELLS
        if not file.is_file():
            continue
        content = read_json(file, MeasurementError, "run `lab run` again")
        if not isinstance(content, dict) or content.get("schema") != 1 or not isinstance(content.get("cells"), list):
            raise MeasurementError(f"{file}: is no list of cells that this version knows; run `lab run` again")
        for row in content["cells"]:
            cell = build(CellFacts, row, str(file), MeasurementError)
            if cell.file is None:
                label = _label(cell.artifact, cell.device, cell.prompt_tokens, cell.generate_tokens)
                found[label] = f"{cell.state}: {cell.reason}" if cell.reason else cell.state
    return found


def match(
    candidates: Sequence[Measurement],
    baselines: Sequence[Measurement],
    noise_floor: float,
    floors: Floors | None,
    unmeasured: Mapping[str, str],
) -> Matched:
    """Compare each with its counterpart. Raises MeasurementError where two have one label, or cannot be compared."""
    new, old = _by_label(candidates), _by_label(baselines)
    comparisons = {
        label: compare(measurement, old[label], noise_floor, floors.of(measurement.device.name) if floors else {})
        for label, measurement in new.items()
        if label in old
    }
    gone = [label for label in old if label not in new]
    reasons = [f"{label}: {unmeasured.get(label, 'not measured')}" for label in {**dict.fromkeys(gone), **unmeasured}]
    return Matched(
        comparisons=comparisons,
        new=[label for label in new if label not in old],
        missing=reasons,
    )


def read_measurements(paths: Sequence[Path]) -> list[Measurement]:
    """The measurements among these files. Raises MeasurementError."""
    contents = {path: read_json(path, MeasurementError, "give a file of `phi-edge bench`") for path in paths}
    return [
        load_measurement(content, path)
        for path, content in contents.items()
        if isinstance(content, dict) and "repetitions" in content
    ]


def _by_label(measurements: Sequence[Measurement]) -> dict[str, Measurement]:
    found: dict[str, Measurement] = {}
    for each in measurements:
        workload = each.workload
        label = _label(each.artifact.name, each.device.name, workload.prompt_tokens, workload.generate_tokens)
        if label in found:
            raise MeasurementError(f"two measurements are of {label}; give one of them")
        found[label] = each
    return found


def _label(artifact: str, device: str, prompt_tokens: int, generate_tokens: int) -> str:
    return f"{artifact} on {device}, {prompt_tokens}+{generate_tokens} tokens"
