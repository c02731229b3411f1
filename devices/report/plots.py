"""The report's plots as inline SVG. Colours and fonts are left to the page's CSS, so that one drawing serves the light
and the dark scheme; measurements are named by their letter, so that no foreign text is drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from devices.measure.measurement import Repetition
from devices.measure.metrics import METRICS, Summary, itl_s
from devices.report.heat import heat
from devices.report.numbers import scale
from devices.report.table import Column, is_alike
from runtimes.api import MemoryUse

# Placeholders that are replaced by CSS variables of the page.
INK, FAINT, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(8))
VARIABLES: Mapping[str, str] = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    GRID: "var(--grid)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)},
}
STYLE: Any = {  # Any: matplotlib's types want each key as a literal
    "svg.fonttype": "none",  # text stays text: the page's font, selectable, small
    "text.parse_math": False,
    "font.size": 11,
    "font.family": "DejaVu Sans",  # for the layout only
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "figure.constrained_layout.use": True,
}
BARS = ("load_s", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s")
ARROW = {"lower": "\u2190 lower is better", "higher": "higher is better \u2192"}


def letter(number: int) -> str:
    """The sign of measurement `number` (from 0) in plots and tables: A, B, ... Z, 27, 28, ..."""
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def draw(columns: Sequence[Column]) -> dict[str, str]:
    """All plots by name, those without data left out."""
    plots: Mapping[str, Callable[[Sequence[Column]], Figure | None]] = {
        "latency": _latency,
        "ecdf": _ecdf,
        "bars": _bars,
        "memory": _memory,
        "quality": _quality,
        "heat": lambda columns: heat(columns, _colour, letter),
    }
    drawn = {}
    for name, plot in plots.items():
        with rc_context({**STYLE, "svg.hashsalt": name}):
            figure = plot(columns)
            if figure is not None:
                drawn[name] = _svg(figure, name)
    return drawn


def _svg(figure: Figure, name: str) -> str:
    """The SVG element: no XML header, no metadata, no fixed size, unique ids, the page's colours."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    start = text.index("<svg")
    end = text.index(">", start)
    opening = re.sub(r'\s(?:width|height|xmlns|xmlns:xlink|version)="[^"]*"', "", text[start:end])
    text = opening + re.sub(r"<metadata>.*?</metadata>", "", text[end:], count=1, flags=re.DOTALL)
    text = re.sub(r'(\bid="|\burl\(#|\bhref="#)', rf"\1{name}-", text)
    text = text.replace("'DejaVu Sans'", "inherit")
    return re.sub("|".join(VARIABLES), lambda colour: VARIABLES[colour[0]], text)


def _gaps_ms(repetition: Repetition) -> NDArray[np.float64]:
    """The gaps between tokens. Of a clock that ran backwards they are 0: the page says that it is invalid."""
    return np.asarray(np.array(itl_s(repetition), dtype=np.float64).clip(0) * 1e3)


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _latency(columns: Sequence[Column]) -> Figure | None:
    """Each token's latency over the generation: every repetition as points, their median as a line."""
    series = [[_gaps_ms(each) for each in column.repetitions] for column in columns]
    gaps = [gap for repetitions in series for gap in repetitions if gap.size]
    if not gaps:
        return None
    figure = Figure(figsize=(11.6, 3.7))
    axes = figure.subplots()
    everything = np.concatenate(gaps)
    top = min(float(everything.max()) * 1.08, float(np.quantile(everything, 0.95)) * 4) or 1.0
    for number, repetitions in enumerate(series):
        for gap in repetitions:
            positions = np.arange(2, gap.size + 2)
            shown = gap <= top
            axes.plot(positions[shown], gap[shown], ".", color=_colour(number), alpha=0.35, markersize=5, mew=0)
            if (beyond := positions[~shown]).size:
                axes.plot(beyond, np.full(beyond.size, top), "^", color=_colour(number), markersize=5, clip_on=False)
        longest = max((gap.size for gap in repetitions), default=0)
        alike = [gap for gap in repetitions if gap.size == longest]
        if longest:
            median = np.median(np.stack(alike), axis=0)
            axes.plot(np.arange(2, longest + 2), median, color=_colour(number), linewidth=1.6, label=letter(number))
    axes.set(xlabel="token of the answer", ylabel="ms since the token before", ylim=(0, top))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)
    _legend(axes, len(columns))
    return figure


def _ecdf(columns: Sequence[Column]) -> Figure | None:
    """The share of gaps that are shorter than x."""
    pooled = [
        np.sort(np.concatenate([np.zeros(0), *(_gaps_ms(each) for each in column.repetitions)])) for column in columns
    ]
    if not any(gaps.size for gaps in pooled):
        return None
    figure = Figure(figsize=(5.4, 3.5))
    axes = figure.subplots()
    right = max(float(np.quantile(gaps, 0.99)) for gaps in pooled if gaps.size) * 1.25 or 1.0
    for number, gaps in enumerate(pooled):
        if gaps.size:
            share = np.arange(1, gaps.size + 1) / gaps.size
            axes.step(gaps, share, where="post", color=_colour(number), linewidth=1.8, label=letter(number))
            for quantile in (0.5, 0.95):
                axes.plot(np.quantile(gaps, quantile), quantile, "o", color=_colour(number), markersize=5)
    axes.set(xlabel="ms between two tokens", ylabel="share of gaps that are shorter", xlim=(0, right), ylim=(0, 1.02))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 0.95])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(axes, len(columns), loc="lower right")
    return figure


def _bars(columns: Sequence[Column]) -> Figure | None:
    """Median, 95 % interval and raw points of the metrics that have one sample per repetition."""
    names = [name for name in BARS if any(column.summaries[name] for column in columns)]
    if not names:
        return None
    figure = Figure(figsize=(11.6, 1.4 + 0.66 * len(columns)))
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, names, strict=True):
        metric = METRICS[name]
        known = [max(summary.value, 0.0) for column in columns if (summary := column.summaries[name])]
        factor, unit = scale(max(known), metric.unit)
        for number, column in enumerate(columns):
            _bar(axes, number, column.summaries[name], factor)
        axes.set_title(metric.label)
        axes.set_xlabel(f"{unit}   {ARROW[metric.better]}")
        axes.set_xlim(left=0, right=None if max(known) else 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(len(columns)), [letter(number) for number in range(len(columns))])
        axes.set_ylim(len(columns) - 0.45, -0.55)
    return figure


def _thousands(value: float, _: int | None) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _bar(axes: Axes, number: int, summary: Summary | None, factor: float) -> None:
    colour = _colour(number)
    if summary is None:
        axes.annotate("not measured", (0, number), (6, 0), textcoords="offset points", va="center", color=FAINT)
        return
    value, samples = max(summary.value, 0.0) / factor, np.array(summary.samples).clip(0) / factor
    axes.barh(number, value, height=0.62, color=colour, alpha=0.3)
    spread = np.linspace(-0.2, 0.2, samples.size) if samples.size > 1 else np.zeros(1)
    axes.plot(samples, number + spread, "o", color=colour, markersize=4, markeredgewidth=0)
    axes.plot([value] * 2, [number - 0.31, number + 0.31], color=colour, linewidth=2.2)
    if summary.low is not None and summary.high is not None:
        axes.plot([summary.low / factor, summary.high / factor], [number] * 2, color=INK, linewidth=1.2)


def _memory(columns: Sequence[Column]) -> Figure | None:
    """Of the median repetition: the sample with the most memory, by kind of page; the line is the peak."""
    memories = [_median(column) for column in columns]
    peaks = [max(memory.peak_bytes, 0) for memory in memories if memory is not None and memory.peak_bytes is not None]
    if not peaks:
        return None
    factor, unit = scale(max(peaks), "bytes")
    figure = Figure(figsize=(5.4, 3.5))
    axes = figure.subplots()
    for number, memory in enumerate(memories):
        left = 0.0
        if memory is None:
            continue
        parts = ((memory.anonymous_bytes, 0.85, ""), (memory.file_bytes, 0.35, ""), (memory.swap_bytes, 0.35, "////"))
        for part, alpha, hatch in parts:
            if part and part > 0:
                axes.barh(number, part / factor, left=left, height=0.5, color=_colour(number), alpha=alpha, hatch=hatch)
                left += part / factor
        if memory.peak_bytes is not None:
            axes.plot(
                [max(memory.peak_bytes, 0) / factor] * 2, [number - 0.34, number + 0.34], color=INK, linewidth=1.8
            )
    axes.set_xlabel(f"{unit}   {ARROW['lower']}")
    axes.set_xlim(left=0, right=None if max(peaks) else 1.0)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks(range(len(columns)), [letter(number) for number in range(len(columns))])
    axes.set_ylim(len(columns) - 0.4, -0.6)
    figure.legend(
        handles=[
            Patch(color=INK, alpha=0.7, label="anonymous"),
            Patch(color=INK, alpha=0.25, label="file"),
            Patch(facecolor="none", edgecolor=INK, hatch="////", label="swap"),
        ],
        loc="outside upper left",
        ncols=3,
        handlelength=1.2,
        columnspacing=1.4,
    )
    return figure


def _median(column: Column) -> MemoryUse | None:
    """The memory of the repetition in the middle, by peak."""
    known = [each.run.memory for each in column.repetitions if each.run.memory.peak_bytes is not None]
    known.sort(key=lambda memory: memory.peak_bytes or 0)
    return known[len(known) // 2] if known else None


def _quality(columns: Sequence[Column]) -> Figure | None:
    """Loss against size: each artifact's KL with its interval over all of its bytes, of those that were compared with
    the same model on the same text as the first."""
    first = next((column.score for column in columns if column.summaries["kl"]), None)
    scored = [
        (number, bytes_, kl)
        for number, column in enumerate(columns)
        if (kl := column.summaries["kl"]) and (bytes_ := column.artifact.artifact_bytes) is not None
        if is_alike(column.score, first, "kl")
    ]
    if len(scored) < 2:
        return None
    factor, unit = scale(max(size for _, size, _ in scored), "bytes")
    figure = Figure(figsize=(11.6, 3.7))
    axes = figure.subplots()
    for number, of_all, kl in scored:
        size, colour = of_all / factor, _colour(number)
        if kl.low is not None and kl.high is not None:
            axes.plot([size, size], [kl.low, kl.high], color=colour, linewidth=2)
        axes.plot(size, kl.value, "o", color=colour, markersize=7)
        axes.annotate(letter(number), (size, kl.value), (9, 0), textcoords="offset points", va="center", color=INK)
    axes.set(xlabel=f"{unit}   {ARROW['lower']}", ylabel="KL, nats a token")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.1)
    return figure


def _legend(axes: Axes, count: int, **options: Any) -> None:
    if count > 1:
        axes.legend(ncols=min(count, 8), handlelength=1.4, **options)
