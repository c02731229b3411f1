"""The HTML report: one page that loads nothing. It fills report.html.j2 with the plots of plots.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from devices.measure.measurement import Measurement, Repetition
from devices.measure.metrics import METRICS, decode_tokens_per_s, prefill_tokens_per_s, ttft_s
from devices.report.numbers import digits, show, show_interval
from devices.report.plots import draw, letter
from devices.report.table import Column, leaves_device, ratio

HEADLINES = (
    "decode_tokens_per_s",
    "ttft_s",
    "peak_memory_bytes",
    "cost_per_1000_answers_usd",
    "kl",
    "top1_agreement",
    "exact_match",
)
OF_SOME = {"cost_per_1000_answers_usd"}  # no headline where it was not measured, as quality


def to_html(columns: Sequence[Column]) -> str:
    """The page. Every text is escaped; only the plots, which contain no foreign text, are inserted as they are."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        columns=[_column(number, column) for number, column in enumerate(columns)],
        rows=[_row(name, columns) for name in METRICS if any(column.summaries[name] for column in columns)],
        metrics=list(METRICS.values()),
        plots={name: Markup(svg) for name, svg in draw(columns).items()},
        show=show,
    )


def _column(number: int, column: Column) -> dict[str, Any]:
    measurement = column.measurement
    return {
        "letter": letter(number),
        "series": number % 8,
        "label": column.label,
        "problems": column.problems,
        "doubts": column.doubts,
        "artifact": column.artifact,
        "leaves_device": leaves_device(column),
        "device": column.device,
        "score": column.score,
        "headlines": [_headline(column, name) for name in HEADLINES if _is_told(column, name)],
        "repetitions": [_repetition(repetition) for repetition in column.repetitions],
        **({} if measurement is None else _conditions(measurement)),
    }


def _conditions(measurement: Measurement) -> dict[str, Any]:
    return {
        "workload": measurement.workload,
        "versions": measurement.versions,
        "created_at": measurement.created_at,
        "before": measurement.before,
        "after": measurement.after,
    }


def _is_told(column: Column, name: str) -> bool:
    """Quality is a headline where it was scored; speed where it was measured, even if the device could not tell it."""
    if METRICS[name].figure is not None or name in OF_SOME:
        return column.summaries[name] is not None
    return column.measurement is not None


def _headline(column: Column, name: str) -> dict[str, str]:
    summary = column.summaries[name]
    value, _, unit = show(summary.value if summary else None, METRICS[name].unit).partition(" ")
    return {"label": METRICS[name].label, "value": value, "unit": unit, "definition": METRICS[name].definition}


def _row(name: str, columns: Sequence[Column]) -> dict[str, Any]:
    return {"metric": METRICS[name], "cells": [_cell(name, column, columns[0]) for column in columns]}


def _cell(name: str, column: Column, first: Column) -> dict[str, Any]:
    summary, unit = column.summaries[name], METRICS[name].unit
    if summary is None:
        return {"value": show(None, unit), "interval": None, "ratio": None, "better": None}
    times = ratio(column, first, name) if column is not first else None
    lower = METRICS[name].better == "lower"
    return {
        "value": show(summary.value, unit),
        "interval": show_interval(summary.value, summary.low, summary.high, unit),
        "ratio": None if times is None else f"{digits(times)}x",
        "better": None if times is None or not _apart(name, column, first) else (times < 1) == lower,
    }


def _apart(name: str, column: Column, first: Column) -> bool:
    """Is the difference worth a colour: exact, or with intervals that do not meet? Verdicts are the gate's."""
    one, other = column.summaries[name], first.summaries[name]
    if one is None or other is None or not other.value:
        return False
    if METRICS[name].exact:
        return abs(one.value / other.value - 1) >= 0.005  # below, the ratio is printed as 1.00x
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low > other.high or one.high < other.low


def _repetition(repetition: Repetition) -> dict[str, str]:
    run = repetition.run
    return {
        "page_cache": repetition.page_cache or "unknown",
        "load": show(repetition.load_s, "s"),
        "open": show(repetition.open_s, "s"),
        "mode": repetition.load_mode or "unknown",
        "ttft": show(ttft_s(repetition), "s"),
        "prefill": show(prefill_tokens_per_s(repetition), "tokens/s"),
        "decode": show(decode_tokens_per_s(repetition), "tokens/s"),
        "peak": show(run.memory.peak_bytes, "bytes"),
        "tokens": str(run.completion_tokens),
        "sha256": run.token_ids_sha256[:8],
    }
