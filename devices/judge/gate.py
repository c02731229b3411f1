"""Judge measurements and scores by budgets. Pure: no clock, no files; the command around it reads, prints and exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from devices.errors import BudgetError
from devices.judge.budgets import MATCH_KEYS, Bound, Budget, limits, match_facts
from devices.measure.metrics import METRICS
from devices.measure.result import Result

Outcome = Literal["pass", "missed", "invalid"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One limit of one budget against one result. `seen` is None where the metric was not measured."""

    limit_name: str  # max_ttft_s
    metric: str  # ttft_s
    bound: Bound
    limit: float
    seen: float | None
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One result and all its checks."""

    label: str
    problems: Sequence[str]  # why the measurement is invalid; empty when it is valid
    doubts: Sequence[str]  # why it may not be what the device can do
    checks: Sequence[Check]
    fail_on_doubt: bool = False

    @property
    def outcome(self) -> Outcome:
        """Invalid before missed before pass; a doubt misses where the budget file says that it fails."""
        missed = any(check.outcome == "missed" for check in self.checks) or self.fails_by_doubt
        return "invalid" if self.problems else "missed" if missed else "pass"

    @property
    def fails_by_doubt(self) -> bool:
        """Whether a doubt alone is a failure here."""
        return self.fail_on_doubt and bool(self.doubts)


def judge(results: Mapping[str, Result], budgets: Sequence[Budget], *, fail_on_doubt: bool = False) -> list[Judgement]:
    """Judge each result, by label, with every budget that matches it.

    Raises BudgetError for a budget that matches nothing and a result without a budget: both would pass unseen.
    """
    for number, budget in enumerate(budgets, start=1):
        if not budget.optional and not any(budget.matches(each) for each in results.values()):
            raise BudgetError(
                f"budget {number} ({budget.name}) matches none of the measurements given "
                f"({_spell_facts(results)}); give its measurement too, or say optional = true"
            )
    judgements = []
    for label, result in results.items():
        matching = [budget for budget in budgets if budget.matches(result)]
        if not matching:
            raise BudgetError(f"no budget matches {label} ({_spell_facts({label: result})}); add a [[budget]] for it")
        found = result.problems
        checks = [
            _check(result, limit_name, limit, valid=not found)
            for budget in matching
            for limit_name, limit in budget.limits.items()
        ]
        judgements.append(
            Judgement(label=label, problems=found, doubts=result.doubts, checks=checks, fail_on_doubt=fail_on_doubt)
        )
    return judgements


def _check(result: Result, limit_name: str, limit: float, *, valid: bool) -> Check:
    metric, bound = limits()[limit_name]
    summary = result.summary(METRICS[metric])
    seen = summary.value if summary else None
    kept = seen is not None and (seen <= limit if bound == "max" else seen >= limit)
    outcome: Outcome = ("pass" if kept else "missed") if valid else "invalid"
    return Check(limit_name=limit_name, metric=metric, bound=bound, limit=limit, seen=seen, outcome=outcome)


def _spell_facts(results: Mapping[str, Result]) -> str:
    facts = (match_facts(result) for result in results.values())
    return "; ".join(", ".join(f"{key}={each[key]}" for key in MATCH_KEYS if key in each) for each in facts)
