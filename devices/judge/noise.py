"""How far two measurements of the same artifact on the same device differ: the noise floor, per device and metric.

It comes from an A/A run (`phi-edge bench A --against A --noise FILE`) and is kept in a file of JSON.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from devices.errors import BudgetError
from devices.judge.sessions import are_paired, ratio_of, sessions_of
from devices.measure.measurement import Measurement
from devices.measure.metrics import METRICS
from export.strict import build, read_json

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Of one metric on one device: a change by less than this share is noise."""

    device: str
    metric: str
    share: float
    sessions: int
    created_at: str


@dataclass(frozen=True, kw_only=True)
class Floors:
    """The file."""

    schema: int
    floors: Sequence[Floor]

    def of(self, device: str) -> Mapping[str, float]:
        """By metric."""
        return {floor.metric: floor.share for floor in self.floors if floor.device == device}

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def read_floors(path: Path) -> Floors:
    """Raises BudgetError."""
    content = read_json(path, BudgetError, "give a file of `phi-edge bench A --against A --noise FILE`")
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        seen = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise BudgetError(f"{path}: schema {seen!r:.60}; this version reads noise floors of schema {SCHEMA}")
    return build(Floors, content, str(path), BudgetError)


def floors_of(one: Measurement, other: Measurement) -> list[Floor]:
    """From two measurements of one artifact: the far end of each metric's interval."""
    found = []
    for name, metric in METRICS.items():
        if metric.exact or metric.figure is not None:
            continue
        sessions = sessions_of(metric, one), sessions_of(metric, other)
        ratio = ratio_of(*sessions, metric.quantile, paired=are_paired(one, other))
        if ratio is not None:
            found.append(
                Floor(
                    device=one.device.name,
                    metric=name,
                    share=max(ratio.high, 1 / ratio.low) - 1,
                    sessions=min(map(len, sessions)),
                    created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                )
            )
    return found


def with_new(floors: Floors | None, new: Sequence[Floor]) -> Floors:
    """Those of other devices and metrics stay."""
    replaced = {(floor.device, floor.metric) for floor in new}
    kept = [floor for floor in (floors.floors if floors else ()) if (floor.device, floor.metric) not in replaced]
    return Floors(schema=SCHEMA, floors=[*kept, *new])
