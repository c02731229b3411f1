"""Judge measurements by budgets. Pure: no clock, no files; the command around it reads, prints and exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from devices.errors import BudgetError
from devices.judge.budgets import LIMITS, MATCH_KEYS, Bound, Budget, match_facts
from devices.measure.measurement import Measurement
from devices.measure.metrics import METRICS, summarize
from devices.measure.validity import problems

Outcome = Literal["pass", "missed", "invalid"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One limit of one budget against one measurement. `seen` is None where the metric was not measured."""

    limit_name: str  # max_ttft_s
    metric: str  # ttft_s
    bound: Bound
    limit: float
    seen: float | None
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One measurement and all its checks."""

    label: str
    problems: Sequence[str]  # why the measurement is invalid; empty when it is valid
    checks: Sequence[Check]

    @property
    def outcome(self) -> Outcome:
        """Invalid before missed before pass."""
        outcomes = {check.outcome for check in self.checks}
        return "invalid" if self.problems else "missed" if "missed" in outcomes else "pass"


def judge(measurements: Mapping[str, Measurement], budgets: Sequence[Budget]) -> list[Judgement]:
    """Judge each measurement, by label, with every budget that matches it.

    Raises BudgetError for a budget that matches nothing and a measurement without a budget: both would pass unseen.
    """
    for number, budget in enumerate(budgets, start=1):
        if not budget.optional and not any(budget.matches(each) for each in measurements.values()):
            raise BudgetError(
                f"budget {number} ({budget.name}) matches none of the measurements given "
                f"({_spell_facts(measurements)}); give its measurement too, or say optional = true"
            )
    judgements = []
    for label, measurement in measurements.items():
        matching = [budget for budget in budgets if budget.matches(measurement)]
        if not matching:
            raise BudgetError(
                f"no budget matches {label} ({_spell_facts({label: measurement})}); add a [[budget]] for it"
            )
        found = problems(measurement)
        checks = [
            _check(measurement, limit_name, limit, valid=not found)
            for budget in matching
            for limit_name, limit in budget.limits.items()
        ]
        judgements.append(Judgement(label=label, problems=found, checks=checks))
    return judgements


def _check(measurement: Measurement, limit_name: str, limit: float, *, valid: bool) -> Check:
    metric, bound = LIMITS[limit_name]
    summary = summarize(METRICS[metric], measurement)
    seen = summary.value if summary else None
    kept = seen is not None and (seen <= limit if bound == "max" else seen >= limit)
    outcome: Outcome = ("pass" if kept else "missed") if valid else "invalid"
    return Check(limit_name=limit_name, metric=metric, bound=bound, limit=limit, seen=seen, outcome=outcome)


def _spell_facts(measurements: Mapping[str, Measurement]) -> str:
    facts = (match_facts(measurement) for measurement in measurements.values())
    return "; ".join(", ".join(f"{key}={each[key]}" for key in MATCH_KEYS) for each in facts)
