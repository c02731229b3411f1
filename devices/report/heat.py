"""The plot of heat and frequency over the minutes of a measurement, where the lab looked before each repetition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from devices.measure.heat import moments
from devices.report.table import Column

PARTS = (("°C, the warmest sensor", 1, 1.0), ("GHz, the fastest core", 2, 1e9))


def heat(columns: Sequence[Column], colour: Callable[[int], str], name: Callable[[int], str]) -> Figure | None:
    """One panel for each of the two that any device reported."""
    watched = [
        (number, moments(column.measurement))
        for number, column in enumerate(columns)
        if column.measurement and any(each.entered for each in column.repetitions)
    ]
    panels = []
    for label, place, factor in PARTS:
        lines = []
        for number, seen in watched:
            points = [(each[0] / 60, value / factor) for each in seen if (value := each[place]) is not None]
            if len(points) > 1:
                lines.append((number, points))
        if lines:
            panels.append((label, lines))
    if not panels:
        return None
    figure = Figure(figsize=(11.6, 3.2))
    for axes, (label, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, points in lines:
            minutes, values = zip(*points, strict=True)
            axes.plot(minutes, values, "o-", color=colour(number), linewidth=1.8, markersize=4, label=name(number))
        axes.set(xlabel="minutes", ylabel=label)
        axes.margins(x=0.02, y=0.15)
        if len(columns) > 1:
            axes.legend(ncols=min(len(columns), 8), handlelength=1.4)
    return figure
