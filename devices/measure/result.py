"""What is known of one artifact: a measurement, a score, or both. Files of either kind, matched by the artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.errors import MeasurementError
from devices.measure.measurement import ArtifactFacts, DeviceFacts, Measurement, load_measurement
from devices.measure.metrics import METRICS, Metric, Summary, summarize
from devices.measure.score import Score, is_score, load_score
from devices.measure.validity import doubts, problems
from export.strict import read_json


@dataclass(frozen=True)
class Result:
    """At least one of the two is there, and both are of the same artifact."""

    measurement: Measurement | None
    score: Score | None

    @property
    def artifact(self) -> ArtifactFacts:
        return self._facts.artifact

    @property
    def device(self) -> DeviceFacts:
        """Where it was measured; where it was scored, if it was only scored."""
        return self._facts.device

    @property
    def problems(self) -> list[str]:
        """Why the measurement is invalid; a score is never."""
        return [] if self.measurement is None else problems(self.measurement)

    @property
    def doubts(self) -> list[str]:
        return [] if self.measurement is None else doubts(self.measurement)

    def summary(self, metric: Metric) -> Summary | None:
        """The metric's value and interval; None where it was not measured."""
        if self.score is not None and metric.figure is not None:
            figure = metric.figure(self.score)
            if figure is None:
                return None
            return Summary(value=figure.value, low=figure.low, high=figure.high, samples=())
        if self.measurement is not None:
            return summarize(metric, self.measurement)
        if metric.name == "artifact_bytes" and self.artifact.artifact_bytes is not None:
            size = float(self.artifact.artifact_bytes)
            return Summary(value=size, low=None, high=None, samples=(size,))
        return None

    def summaries(self) -> dict[str, Summary | None]:
        """Every metric's."""
        return {name: self.summary(metric) for name, metric in METRICS.items()}

    @property
    def _facts(self) -> Measurement | Score:
        found = self.measurement or self.score
        assert found is not None
        return found


def is_file_of_results(path: Path) -> bool:
    """Whether a file of a folder is a measurement or a score. Raises MeasurementError where it is no JSON."""
    content = read_json(path, MeasurementError, "move it away, or give the files")
    return is_score(content) or (isinstance(content, dict) and "repetitions" in content)


def read_results(paths: Sequence[Path]) -> list[Result]:
    """A result for each measurement, with the score of its artifact, then one for each score without a measurement.

    Raises MeasurementError where a file is neither, or two scores are of one artifact.
    """
    measurements: list[Measurement] = []
    scores: dict[str, Score] = {}
    for path in paths:
        content = read_json(path, MeasurementError, "give a file of `phi-edge bench` or `phi-edge score`")
        if not is_score(content):
            measurements.append(load_measurement(content, path))
        elif (score := load_score(content, path)).artifact.digest in scores:
            raise MeasurementError(f"{path}: a second score of the artifact {score.artifact.name}; give one of them")
        else:
            scores[score.artifact.digest] = score
    results = [Result(each, scores.get(each.artifact.digest)) for each in measurements]
    measured = {each.artifact.digest for each in measurements}
    return results + [Result(None, score) for digest, score in scores.items() if digest not in measured]
