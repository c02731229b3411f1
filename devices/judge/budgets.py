"""Budgets: the limits of a measurement, read from TOML. gate.py judges by them.

noise_floor = 0.05            # a change smaller than this is noise; only for --baseline
fail_on_doubt = true          # a doubtful measurement fails; otherwise that is only said

[[budget]]
match = {target = "raspberry-pi", format = "onnx", device = "local"}
max_ttft_s = 1.5
min_decode_tokens_per_s = 8
max_peak_memory_bytes = 4_000_000_000
max_kl = 0.2                  # of the artifact's score: also max_perplexity, min_top1_agreement, min_exact_match
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from devices.errors import BudgetError
from devices.measure.metrics import METRICS
from devices.measure.result import Result
from export.strict import read_toml, refuse_unknown

Bound = Literal["max", "min"]

MATCH_KEYS = ("target", "format", "scheme", "source", "artifact", "device", "prompt_tokens", "generate_tokens")


def limits() -> dict[str, tuple[str, Bound]]:
    """Each limit as it is written in the file -> the metric it bounds, and from which side."""
    bounds: dict[str, Bound] = {"lower": "max", "higher": "min"}
    return {f"{bounds[metric.better]}_{name}": (name, bounds[metric.better]) for name, metric in METRICS.items()}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One [[budget]]: which measurements it is for, and their limits."""

    match: Mapping[str, str | int]
    limits: Mapping[str, float]
    optional: bool = False  # it may match nothing

    @property
    def name(self) -> str:
        """The match, as written in the file."""
        return ", ".join(f"{key}={value}" for key, value in self.match.items()) or "every measurement"

    def matches(self, result: Result) -> bool:
        """Do all keys of `match` have the result's values?"""
        facts = match_facts(result)
        return all(facts.get(key) == value for key, value in self.match.items())


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """A budget file."""

    budgets: Sequence[Budget]
    noise_floor: float = 0.05
    fail_on_doubt: bool = False


def match_facts(result: Result) -> dict[str, str | int]:
    """The values of MATCH_KEYS for a result; a score alone has no workload."""
    artifact = result.artifact
    facts: dict[str, str | int] = {
        "target": artifact.target,
        "format": artifact.format,
        "scheme": artifact.scheme,
        "source": artifact.source,
        "artifact": artifact.name,
        "device": result.device.name,
    }
    if result.measurement is not None:
        workload = result.measurement.workload
        facts |= {"prompt_tokens": workload.prompt_tokens, "generate_tokens": workload.generate_tokens}
    return facts


def read_budgets(path: Path) -> Budgets:
    """Read a budget file, strictly. Raises BudgetError."""
    content = read_toml(path, BudgetError)
    refuse_unknown(content, ["noise_floor", "fail_on_doubt", "budget"], str(path), BudgetError)
    rows = content.get("budget", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BudgetError(f"{path}: write each budget as a table [[budget]]")
    noise_floor = _number(content.get("noise_floor", 0.05), f"{path}: noise_floor")
    if not 0 <= noise_floor < 1:
        raise BudgetError(f"{path}: noise_floor {noise_floor}; give a share from 0 to below 1")
    fail_on_doubt = content.get("fail_on_doubt", False)
    if not isinstance(fail_on_doubt, bool):
        raise BudgetError(f"{path}: fail_on_doubt: expected true or false, saw {fail_on_doubt!r:.60}")
    budgets = tuple(_budget(row, f"{path}: budget {number}") for number, row in enumerate(rows, start=1))
    return Budgets(budgets=budgets, noise_floor=noise_floor, fail_on_doubt=fail_on_doubt)


def _budget(row: Mapping[str, Any], where: str) -> Budget:
    known = limits()
    refuse_unknown(row, ["match", "optional", *known], where, BudgetError)
    match = row.get("match", {})
    if not isinstance(match, dict):
        raise BudgetError(f"{where}: write match as a table, as in match = {{target = 'cpu'}}")
    refuse_unknown(match, MATCH_KEYS, f"{where}: match", BudgetError)
    for key, value in match.items():
        kind = int if key.endswith("_tokens") else str
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BudgetError(f"{where}: match.{key}: expected {kind.__name__}, saw {value!r}")
    optional = row.get("optional", False)
    if not isinstance(optional, bool):
        raise BudgetError(f"{where}: optional: expected true or false, saw {optional!r}")
    found = {key: _number(value, f"{where}: {key}") for key, value in row.items() if key in known}
    for key, value in found.items():
        if METRICS[known[key][0]].unit == "share" and value > 1:
            raise BudgetError(f"{where}: {key}: expected a share from 0 to 1, such as 0.75, saw {value:g}")
    if not found:
        raise BudgetError(f"{where}: has no limit; known: {', '.join(known)}")
    return Budget(match=match, limits=found, optional=optional)


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise BudgetError(f"{where}: expected a number that is not negative, saw {value!r:.60}")
    return float(value)
