"""What the dashboard's script gets: the series of a history in columns, each text and each set of versions once.

Numbers have five digits there: the page shows three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from devices.history.figures import FileFigures
from devices.history.series import Series, changes_of, group
from devices.measure.metrics import METRICS

Content = dict[str, Any]  # of JSON
MOST_TEXTS = 3  # of the reasons why a measurement is invalid


def content_of(files: Sequence[FileFigures]) -> Content:
    """Everything the page shows."""
    names = [name for name in METRICS if any(name in file.metrics for file in files)]
    artifacts = _newest(files, "artifact")
    digests, versions = _Numbered(), _Numbered()
    series = [_series(key, own, names, digests, versions) for key, own in group(files).items()]
    return {
        "metrics": [_metric(name) for name in names],
        "artifacts": {
            name: f"{file.format}, {file.scheme}" if file.scheme else file.format for name, file in artifacts.items()
        },
        "devices": {name: file.transport for name, file in _newest(files, "device").items()},
        "measurements": sum(1 for file in files if file.repetitions),
        "repetitions": sum(file.repetitions for file in files),
        "series": series,
        "digests": digests.texts,
        "versions": versions.texts,
    }


class _Numbered:
    """Texts, each once, by their place."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]


def _newest(files: Sequence[FileFigures], field: str) -> dict[str, FileFigures]:
    """The newest file of each name, by name."""
    return dict(sorted({str(getattr(file, field)): file for file in files}.items()))


def _metric(name: str) -> Content:
    metric = METRICS[name]
    return {
        "name": name,
        "label": metric.label,
        "unit": metric.unit,
        "better": metric.better,
        "definition": metric.definition,
        "of_score": metric.figure is not None,
    }


def _series(
    key: Series, files: Sequence[FileFigures], names: Sequence[str], digests: _Numbered, versions: _Numbered
) -> Content:
    places = {file.file: place for place, file in enumerate(files)}
    own = [name for name in names if any(name in file.metrics for file in files)]
    return {
        "artifact": key.artifact,
        "device": key.device,
        "workload": _workload(key),
        "at": _times(files),
        "digest": [digests.place(file.digest[:12]) for file in files],
        "versions": [
            versions.place(", ".join(f"{name} {version}" for name, version in sorted(file.versions.items())))
            for file in files
        ],
        "invalid": {place: list(file.problems[:MOST_TEXTS]) for place, file in enumerate(files) if file.problems},
        "doubtful": {place: list(file.doubts[:MOST_TEXTS]) for place, file in enumerate(files) if file.doubts},
        "figures": {name: _columns(files, name) for name in own},
        "changes": {
            name: [
                {"at": places[each.file.file], "ratio": _short(each.change.ratio), "after": _short(each.change.after)}
                for each in changes
            ]
            for name in own
            if (changes := changes_of(key, files, name))
        },
        "moments": [[_short(number) for number in moment] for moment in files[-1].moments],
    }


def _workload(key: Series) -> str:
    if key.prompt_tokens < 0:
        return ""
    threads = "" if key.threads < 0 else f", {key.threads} threads"
    return f"{key.prompt_tokens} + {key.generate_tokens} tokens{threads}"


def _columns(files: Sequence[FileFigures], name: str) -> list[list[float | None]]:
    """Values, and the ends of their intervals; None where there is none."""
    found = [file.metrics.get(name) for file in files]
    return [[None if figure is None else _short(figure[column]) for figure in found] for column in range(3)]


def _times(files: Sequence[FileFigures]) -> list[int]:
    """Seconds since 1970. What has no time that anybody can read is as old as the file before it."""
    times: list[int] = []
    for file in files:
        made_s = file.made_s
        times.append(int(made_s) if made_s is not None else times[-1] if times else 0)
    return times


def _short(number: float | None) -> float | None:
    if number is None or not math.isfinite(number):
        return None
    short = float(f"{number:.5g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
