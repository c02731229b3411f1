"""One cell of a job on a device that is there: makes the repetitions that are missing, and stores each at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from devices.drivers.driver import Driver, Say
from devices.jobs.plan import Cell
from devices.jobs.store import CellStore
from devices.measure.bench import assemble, describe_workload, give_up, repeat
from devices.measure.contender import facts_of, stage
from devices.measure.measurement import DeviceFacts, Measurement, Repetition

# measured: its figures are there, and `invalid` ones too, with the reason that no verdict may rest on them.
# refused: it cannot run there (its format, its size, the disk). crashed: its process ended, twice.
# away: the device did not answer. quarantined: it was left alone after that. in use: by another job, for too long.
State = Literal["measured", "invalid", "refused", "not ready", "crashed", "away", "quarantined", "in use"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a cell."""

    cell: Cell
    state: State
    reason: str | None = None
    measurement: Measurement | None = None


def identity(cell: Cell) -> Mapping[str, object]:
    """What must be the same for a repetition to belong to the cell."""
    return {
        "artifact": facts_of(cell.artifact).digest,
        "device": cell.device,
        "workload": dataclasses.asdict(describe_workload(cell.artifact, cell.plan)),
    }


def measure_cell(
    cell: Cell, facts: DeviceFacts, driver: Driver, store: CellStore, say: Say, check: Callable[[], None]
) -> Measurement:
    """`check` raises where the job must not go on: the lease is lost, or the user has stopped it.

    Raises DeviceError and RuntimesError. What was finished before is in the store.
    """
    finished, plan = store.finished, cell.plan
    if finished.after is None:
        stage(driver, cell.artifact, say)
        session = store.started(driver.conditions())
        drops_before = len(finished.dropped)
        while (number := len(finished.repetitions)) < plan.repetitions:

            def step(done: int, doing: str, number: int = number) -> None:
                check()
                say(f"repetition {number + 1} of {plan.repetitions}: {doing}")

            made = repeat(cell.artifact, driver, plan, number, step)
            check()  # had the device for the whole of it
            if isinstance(made, Repetition):
                store.repeated(dataclasses.replace(made, session=session))
            else:
                store.dropped(made)
                give_up(finished.dropped[drops_before:])
        store.ended(driver.conditions())
    assert finished.before is not None and finished.after is not None
    conditions = (finished.before, finished.after)
    measurement = assemble(cell.artifact, facts, plan, conditions, finished.repetitions, finished.dropped)
    return dataclasses.replace(measurement, failures=finished.failures)
