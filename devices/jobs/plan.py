"""What a job does: a plan, read from TOML.

artifacts = ["../phi3-cpu", "../phi3-e8"]   # folders, from the plan's own folder on
devices = ["local", "pi5"]                # of the lab file
metrics = ["ttft_s", "decode_tokens_per_s"]   # that its table shows; may be left out

[[workload]]
prompt_tokens = 128
generate_tokens = 64
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.errors import PlanError
from devices.lab import Lab
from devices.measure.bench import Plan, check_context
from devices.measure.contender import Contender, name_of, open_contender
from devices.measure.measurement import MOST_REPETITIONS
from devices.measure.metrics import METRICS
from devices.measure.readiness import Readiness
from export.strict import build, read_toml
from runtimes.system.cores import MOST_THREADS

MOST_TOKENS = 1 << 20
MOST_SECONDS = 1e6


@dataclass(frozen=True, kw_only=True)
class WorkloadRow:
    """One [[workload]]."""

    prompt_tokens: int
    generate_tokens: int = 64


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """The keys of a plan."""

    artifacts: Sequence[str]
    devices: Sequence[str]
    workload: Sequence[WorkloadRow] = (WorkloadRow(prompt_tokens=128),)
    repetitions: int = 5
    warmups: int = 1
    threads: int | None = None  # None: the device's threads in the lab file
    deadline_s: float = 600.0  # for one repetition
    ready_s: float = 300.0  # for the device to become cool and idle, before each repetition
    retries: int = 3  # of a device that does not answer, before it is left alone
    retry_s: float = 30.0  # before the first of them; then twice as long each time
    metrics: Sequence[str] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement to be made."""

    artifact: Contender
    device: str
    plan: Plan

    @property
    def name(self) -> str:
        """Also of its files."""
        size = f"{self.plan.prompt_tokens}x{self.plan.generate_tokens}"
        return f"{name_of(self.artifact)}-{self.device}-{size}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A plan with everything it names."""

    cells: Sequence[Cell]
    metrics: Sequence[str]
    retries: int
    retry_s: float


def read_plan(path: Path, lab: Lab) -> Job:
    """Read a plan, strictly, and open its artifacts. Raises PlanError, LabError, DeviceError and ExportError."""
    content = read_toml(path, PlanError)
    if isinstance(content.get("workload"), Mapping):
        raise PlanError(f"{path}: write each workload as a table [[workload]]")
    plan = build(PlanFile, content, str(path), PlanError)
    _check(plan, str(path))
    artifacts = [open_contender(path.parent / name) for name in plan.artifacts]
    cells = []
    for device in plan.devices:
        row = lab.device(device)
        for artifact in artifacts:
            for workload in plan.workload:
                own = Plan(
                    prompt_tokens=workload.prompt_tokens,
                    generate_tokens=workload.generate_tokens,
                    repetitions=plan.repetitions,
                    warmups=plan.warmups,
                    threads=plan.threads if plan.threads is not None else row.threads,
                    deadline_s=plan.deadline_s,
                    readiness=Readiness(wait_s=plan.ready_s, below_c=row.ready_below_c),
                    meter=row.meter,
                )
                check_context(artifact, own)
                cells.append(Cell(artifact=artifact, device=device, plan=own))
    for name, count in Counter(cell.name for cell in cells).items():
        if count > 1:
            raise PlanError(f"{path}: {count} cells would have the name {name!r}; rename an artifact's folder")
    return Job(cells=cells, metrics=plan.metrics, retries=plan.retries, retry_s=plan.retry_s)


def _check(plan: PlanFile, where: str) -> None:
    for name in ("artifacts", "devices", "workload"):
        rows: Sequence[Any] = getattr(plan, name)
        if not rows:
            raise PlanError(f"{where}: {name} is empty; give at least one")
        if twice := [row for row, count in Counter(rows).items() if count > 1]:
            raise PlanError(f"{where}: {name} has {twice[0]!r:.60} twice")
    for metric in plan.metrics:
        if metric not in METRICS:
            raise PlanError(f"{where}: unknown metric {metric!r:.60}; known: {', '.join(METRICS)}")
    limits: dict[str, tuple[float, float]] = {
        "repetitions": (1, MOST_REPETITIONS),
        "warmups": (0, MOST_REPETITIONS),
        "threads": (1, MOST_THREADS),
        "deadline_s": (0.001, MOST_SECONDS),
        "ready_s": (0, MOST_SECONDS),
        "retries": (0, 100),
        "retry_s": (0, MOST_SECONDS),
    }
    values = [(name, getattr(plan, name), bounds) for name, bounds in limits.items()]
    for row in plan.workload:
        values += [("prompt_tokens", row.prompt_tokens, (1, MOST_TOKENS))]
        values += [("generate_tokens", row.generate_tokens, (1, MOST_TOKENS))]
    for name, value, (low, high) in values:
        if value is not None and not low <= value <= high:
            raise PlanError(f"{where}: {name} is {value:g}; allowed: {low:g} to {high:g}")
