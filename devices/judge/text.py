"""Judgements and comparisons as the lines that `phi-edge gate` prints."""

from __future__ import annotations

from collections.abc import Sequence

from devices.judge.compare import Comparison
from devices.judge.gate import Judgement
from devices.measure.metrics import METRICS
from devices.report.numbers import show
from runtimes.terminal import one_line


def to_text(judgements: Sequence[Judgement], comparison: Comparison | None) -> str:
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
    if comparison is not None:
        lines.append(f"{comparison.verdict}: against the baseline, noise floor {comparison.noise_floor:.0%}")
        lines += [f"  invalid       {problem}" for problem in comparison.problems]
        for change in comparison.changes:
            unit = METRICS[change.metric].unit
            values = f"{show(change.baseline, unit):>15} -> {show(change.candidate, unit):<15}"
            ratio = "no ratio" if change.ratio is None else f"{change.ratio:.3f}x"
            bounds = "" if change.low is None or change.high is None else f" ({change.low:.3f} to {change.high:.3f})"
            floor = f", noise floor {change.floor:.1%}" if change.floor > comparison.noise_floor else ""
            lines.append(f"  {change.verdict:<12}  {change.metric:<20}  {values}  {ratio}{bounds}{floor}")
    return "\n".join(lines) + "\n"
