"""Measurements side by side: a table in markdown, or JSON. The HTML page is page.py's; no statistic is made here."""

from __future__ import annotations

import dataclasses
import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from devices.measure.measurement import ArtifactFacts, DeviceFacts, Measurement, Repetition, ServiceFacts, StockFacts
from devices.measure.metrics import METRICS, Summary
from devices.measure.result import Result
from devices.measure.score import Score
from devices.report.numbers import NOT_MEASURED, digits, show, show_interval


@dataclass(frozen=True, kw_only=True)
class Column:
    """One artifact as the report shows it: measured, scored, or both."""

    label: str
    artifact: ArtifactFacts
    device: DeviceFacts
    measurement: Measurement | None
    score: Score | None
    summaries: Mapping[str, Summary | None]  # by metric
    problems: Sequence[str]  # why it is invalid
    doubts: Sequence[str]

    @property
    def repetitions(self) -> Sequence[Repetition]:
        """The measurement's; none where it was only scored."""
        return () if self.measurement is None else self.measurement.repetitions


def labels(results: Sequence[Result]) -> list[str]:
    """A name for each: artifact, format and device, numbered where several have the same."""
    names = [f"{each.artifact.name} · {_engine(each.artifact)} · {each.device.name}" for each in results]
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if names.count(name) == 1 else f"{name} #{seen[name]}")
    return found


def _engine(artifact: ArtifactFacts) -> str:
    """The format, which says the engine; another tool's engine by its name."""
    return artifact.format if artifact.stock is None else artifact.stock.engine


def make_columns(results: Sequence[Result]) -> list[Column]:
    """Summarize every metric of every result."""
    return [
        Column(
            label=label,
            artifact=result.artifact,
            device=result.device,
            measurement=result.measurement,
            score=result.score,
            summaries=result.summaries(),
            problems=result.problems,
            doubts=[*result.doubts, *_doubts_of_score(result.score, results[0].score)],
        )
        for label, result in zip(labels(results), results, strict=True)
    ]


def _doubts_of_score(score: Score | None, first: Score | None) -> list[str]:
    others = [metric.label for name, metric in METRICS.items() if not is_alike(score, first, name)]
    if not others:
        return []
    return [f"{', '.join(others)}: not compared with the first, whose text, reference or questions are others"]


def is_alike(score: Score | None, first: Score | None, metric: str) -> bool:
    """Whether two scores say something of each other by this metric. Where either lacks it, nothing is wrong."""
    figure = METRICS[metric].figure
    if figure is None or score is None or first is None or figure(score) is None or figure(first) is None:
        return True
    return score.measured_on(metric) == first.measured_on(metric)


def ratio(column: Column, first: Column, metric: str) -> float | None:
    """A column's value by the first column's; None where either was not measured, or on another text."""
    value, base = column.summaries[metric], first.summaries[metric]
    if not value or not base or not base.value or not is_alike(column.score, first.score, metric):
        return None
    return value.value / base.value


def leaves_device(column: Column) -> str:
    """What goes to somebody else when the model is used."""
    service = column.artifact.service
    return "nothing" if service is None else f"every prompt and answer, to {service.url}"


def to_json(columns: Sequence[Column]) -> str:
    """Everything the report shows, for a script."""
    content = [
        {
            "label": column.label,
            "valid": not column.problems,
            "problems": list(column.problems),
            "doubts": list(column.doubts),
            "artifact": dataclasses.asdict(column.artifact),
            "device": dataclasses.asdict(column.device),
            "leaves_the_device": leaves_device(column),
            "workload": dataclasses.asdict(column.measurement.workload) if column.measurement else None,
            "score": dataclasses.asdict(column.score) if column.score else None,
            "metrics": {name: _metric_json(column, columns[0], name) for name in METRICS},
        }
        for column in columns
    ]
    return json.dumps({"schema": 1, "measurements": content}, indent=2, allow_nan=False) + "\n"


def _metric_json(column: Column, first: Column, name: str) -> dict[str, float | int | str | None] | None:
    summary = column.summaries[name]
    if summary is None:
        return None
    return {
        "value": summary.value,
        "low": summary.low,
        "high": summary.high,
        "unit": METRICS[name].unit,
        "better": METRICS[name].better,
        "samples": len(summary.samples),
        "ratio_to_first": ratio(column, first, name),
    }


def to_markdown(columns: Sequence[Column]) -> str:
    """A table that GitHub renders: a row per metric, a column per measurement."""
    lines = [
        "| | " + " | ".join(escape_markdown(column.label) for column in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, metric in METRICS.items():
        if any(column.summaries[name] for column in columns):
            cells = [_cell(column, columns[0], name) for column in columns]
            lines.append(f"| {metric.label} | " + " | ".join(cells) + " |")
    if any(column.artifact.service for column in columns):
        lines.append(f"| Leaves the device | {' | '.join(escape_markdown(leaves_device(c)) for c in columns)} |")
    lines += ["", *(_footnote(column) for column in columns)]
    for column in columns:
        for kind, texts in (("invalid", column.problems), ("doubtful", column.doubts)):
            lines += [f"- **{kind}**: {escape_markdown(column.label)}: {escape_markdown(text)}" for text in texts]
    return "\n".join(lines) + "\n"


def _cell(column: Column, first: Column, name: str) -> str:
    summary = column.summaries[name]
    if summary is None:
        return NOT_MEASURED
    text = show(summary.value, METRICS[name].unit)
    if bounds := show_interval(summary.value, summary.low, summary.high, METRICS[name].unit):
        text += f" ({bounds})"
    if column is not first and (times := ratio(column, first, name)) is not None:
        text += f", {digits(times)}x"
    return text


def _footnote(column: Column) -> str:
    artifact, measurement, score = column.artifact, column.measurement, column.score
    service = artifact.service
    facts = [f"{artifact.source}, {artifact.scheme}" if service is None else f"a service at {service.url}"]
    if artifact.stock is not None:
        facts = [artifact.source, _stock(artifact, artifact.stock, {} if measurement is None else measurement.versions)]
    if measurement is not None and service is not None:
        workload = measurement.workload
        facts += [
            f"prompt about {workload.prompt_tokens}, generate {workload.generate_tokens}",
            f"{workload.repetitions} repetitions, each over new connections",
            _price(service),
        ]
    elif measurement is not None:
        workload = measurement.workload
        facts += [
            f"prompt {workload.prompt_tokens}, generate {workload.generate_tokens}",
            f"{workload.repetitions} repetitions, each a fresh process",
            f"threads {workload.threads or 'as many as cores'}",
            measurement.before.cpu_model or "unknown CPU",
            *([f"on {measurement.accelerator}"] if measurement.accelerator else []),
        ]
    if score is not None and score.text is not None:
        facts.append(f"{score.text.scored_tokens} tokens of {score.text.name}")
    if score is not None and score.reference is not None:
        facts.append(f"against {score.reference.name}, KL over the {score.reference.kl_over}")
    if service is None:
        facts.append(f"artifact {artifact.digest[:12]}")
    return f"- {escape_markdown(column.label)}: {escape_markdown('; '.join(facts))}"


def _stock(artifact: ArtifactFacts, stock: StockFacts, versions: Mapping[str, str]) -> str:
    engine = stock.engine if stock.engine == stock.package else f"{stock.engine} of {stock.package}"
    names = {name: METRICS[name].label if name in METRICS else name for name in stock.lacks}
    lacks = ", ".join(f"{names[name]} ({why})" for name, why in stock.lacks.items())
    return (
        f"another tool's export (scheme {artifact.scheme}) in {engine} {versions.get(stock.package, '')}, {stock.loop} "
        f"loop; without {lacks}"
    )


def _price(service: ServiceFacts) -> str:
    if service.input_usd_per_million is None or service.output_usd_per_million is None:
        return "no price in the lab file"
    return (
        f"{service.input_usd_per_million:g} USD a million input tokens, {service.output_usd_per_million:g} USD a "
        "million output tokens"
    )


def escape_markdown(text: str) -> str:
    """Text that GitHub shows as it is, on one line: no tag, no cell border, no emphasis, no link."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{char}" if char in "\\`*_[]|~$" else char for char in escaped)
