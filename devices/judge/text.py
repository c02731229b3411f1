"""Judgements and comparisons as the lines that `phi-edge gate` prints."""

from __future__ import annotations

from collections.abc import Sequence

from devices.judge.compare import Comparison
from devices.judge.gate import Judgement
from devices.judge.matched import Matched
from devices.measure.metrics import METRICS
from devices.report.numbers import show
from runtimes.terminal import one_line


def to_text(judgements: Sequence[Judgement], comparison: Comparison | Matched | None) -> str:
    """One block per measurement, one line per limit or metric, the verdict first."""
    lines: list[str] = []
    for judgement in judgements:
        lines.append(f"{judgement.outcome}: {one_line(judgement.label)}")
        lines += [f"  invalid  {one_line(problem)}" for problem in judgement.problems]
        lines += [f"  doubtful  {one_line(doubt)}" for doubt in judgement.doubts]
        for check in judgement.checks:
            unit = METRICS[check.metric].unit
            sign = "<=" if check.bound == "max" else ">="
            seen, limit = show(check.seen, unit), show(check.limit, unit)
            lines.append(f"  {check.outcome:<7}  {check.metric:<20}  {seen:>15}  {sign} {limit}")
    if isinstance(comparison, Comparison):
        lines += _comparison("against the baseline", comparison)
    elif comparison is not None:
        lines += _matched(comparison)
    return "\n".join(lines) + "\n"


def _matched(matched: Matched) -> list[str]:
    lines: list[str] = []
    for label, each in matched.comparisons.items():
        lines += _comparison(f"{one_line(label)}, against its baseline", each)
    lines += [f"new: {one_line(label)}: the baseline lacks it" for label in matched.new]
    return lines + [f"missing: {one_line(text)}" for text in matched.missing]


def _comparison(title: str, comparison: Comparison) -> list[str]:
    lines = [f"{comparison.verdict}: {title}, noise floor {comparison.noise_floor:.0%}"]
    lines += [f"  invalid       {problem}" for problem in comparison.problems]
    for change in comparison.changes:
        unit = METRICS[change.metric].unit
        values = f"{show(change.baseline, unit):>15} -> {show(change.candidate, unit):<15}"
        ratio = "no ratio" if change.ratio is None else f"{change.ratio:.3f}x"
        bounds = "" if change.low is None or change.high is None else f" ({change.low:.3f} to {change.high:.3f})"
        floor = f", noise floor {change.floor:.1%}" if change.floor > comparison.noise_floor else ""
        lines.append(f"  {change.verdict:<12}  {change.metric:<20}  {values}  {ratio}{bounds}{floor}")
    return lines
