"""The files of a history as series: one artifact on one device with one workload, night after night."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devices.history.changes import Change, change_points
from devices.history.figures import FileFigures


@dataclass(frozen=True, order=True)
class Series:
    """What is compared over time. The artifact is known by its name: its digest changes with each new export."""

    artifact: str
    device: str
    prompt_tokens: int  # -1 of a score
    generate_tokens: int
    threads: int  # -1: as many as the device has cores


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A new level of a metric, and the file with which it began."""

    series: Series
    metric: str
    file: FileFigures
    change: Change


def group(files: Sequence[FileFigures]) -> dict[Series, list[FileFigures]]:
    """The series by name, each in the order of the files."""
    found: dict[Series, list[FileFigures]] = {}
    for file in files:
        workload = [-1 if number is None else number for number in (file.prompt_tokens, file.generate_tokens)]
        threads = -1 if file.threads is None else file.threads
        key = Series(file.artifact, file.device, workload[0], workload[1], threads)
        found.setdefault(key, []).append(file)
    return dict(sorted(found.items()))


def changes_of(series: Series, files: Sequence[FileFigures], metric: str) -> list[Changed]:
    """The changes of a metric in a series. Invalid measurements say nothing."""
    valid = [file for file in files if not file.problems and metric in file.metrics]
    found = change_points([file.metrics[metric][0] for file in valid])
    return [Changed(series=series, metric=metric, file=valid[each.index], change=each) for each in found]


def all_changes(files: Sequence[FileFigures]) -> list[Changed]:
    """The changes of every metric in every series."""
    return [
        changed
        for series, own in group(files).items()
        for metric in sorted({name for file in own for name in file.metrics})
        for changed in changes_of(series, own, metric)
    ]
