"""Findings of the manifest, of measurements and scores, and of a comparison. Pure: no clock, no files."""

from __future__ import annotations

from collections.abc import Mapping

from ci.export_check.check_file import Limits
from ci.export_check.finding import Finding, Outcome
from devices.judge.budgets import Budgets
from devices.judge.compare import Change, Comparison
from devices.judge.gate import Check, judge
from devices.measure.metrics import METRICS
from devices.measure.result import Result
from devices.report.numbers import show
from export.artifact import Manifest


def judge_plan(manifest: Manifest, limits: Limits) -> list[Finding]:
    """Size, memory and coverage: what the manifest says, with a limit or without."""
    size = sum(file.bytes for file in manifest.files.values())
    memory = manifest.memory.needed_bytes(manifest.context_tokens)
    places = "; ".join(f"{place}: {sum(counts.values())}" for place, counts in manifest.coverage.items())
    return [
        _planned("max_artifact_bytes", size, limits.max_artifact_bytes, show(size, "bytes"), "bytes"),
        _planned(
            "max_memory_bytes",
            memory,
            limits.max_memory_bytes,
            f"{show(memory, 'bytes')} with {manifest.context_tokens} tokens",
            "bytes",
        ),
        _planned("max_outside_nodes", outside_nodes(manifest.coverage), limits.max_outside_nodes, places, ""),
    ]


def outside_nodes(coverage: Mapping[str, Mapping[str, int]]) -> int:
    """Nodes beside the accelerator: all but DirectML's where that is one, else what no delegate took."""
    outside = {"CPUExecutionProvider", "portable"} if "DmlExecutionProvider" in coverage else {"portable"}
    return sum(sum(counts.values()) for place, counts in coverage.items() if place in outside)


def _planned(name: str, value: int, limit: int | None, said: str, unit: str) -> Finding:
    if limit is None:
        return Finding(step="plan", name=name.removeprefix("max_"), outcome="note", said=said)
    outcome: Outcome = "pass" if value <= limit else "missed"
    seen = f"{said}; {value:,} against a limit of {limit:,} {unit}".rstrip()
    return Finding(step="plan", name=name, outcome=outcome, said=seen)


def judge_results(results: Mapping[str, Result], budgets: Budgets | None) -> list[Finding]:
    """Every limit of the budget file, and why a measurement is invalid or doubtful. Raises BudgetError."""
    strict = budgets is not None and budgets.fail_on_doubt
    findings = []
    for result in results.values():
        findings += [Finding(step="limits", name="valid", outcome="missed", said=each) for each in result.problems]
        doubt: Outcome = "missed" if strict else "doubt"
        findings += [Finding(step="limits", name="doubtful", outcome=doubt, said=each) for each in result.doubts]
    if budgets is not None:
        for judgement in judge(results, budgets.budgets):
            findings += [_limit(check) for check in judgement.checks]
    return findings


def _limit(check: Check) -> Finding:
    unit = METRICS[check.metric].unit
    said = f"{show(check.seen, unit)}, limit {show(check.limit, unit)}"
    return Finding(
        step="limits",
        name=check.limit_name,
        outcome="pass" if check.outcome == "pass" else "missed",
        said=f"{said}; the measurement is invalid" if check.outcome == "invalid" else said,
    )


def judge_changes(comparison: Comparison) -> list[Finding]:
    """Each metric beside the baseline's. Inconclusive is shown, and fails nothing."""
    problems = [Finding(step="baseline", name="valid", outcome="missed", said=each) for each in comparison.problems]
    return problems + [_change(change) for change in comparison.changes if change.verdict != "invalid"]


def _change(change: Change) -> Finding:
    unit = METRICS[change.metric].unit
    said = f"{change.verdict}: {show(change.baseline, unit)} -> {show(change.candidate, unit)}"
    if change.ratio is not None:
        said += f", {change.ratio:.3f} of the baseline"
    if change.low is not None and change.high is not None:
        said += f" ({change.low:.3f} to {change.high:.3f})"
    outcomes: dict[str, Outcome] = {"regression": "missed", "inconclusive": "note"}
    return Finding(step="baseline", name=change.metric, outcome=outcomes.get(change.verdict, "pass"), said=said)
