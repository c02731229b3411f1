"""Two artifacts in turns, A B B A, so that what drifts (heat, a neighbour, a battery) hits both alike."""

from __future__ import annotations

import dataclasses
import functools
import uuid

from devices.drivers.driver import Driver
from devices.measure.bench import Plan, Step, assemble, check_context, give_up, repeat
from devices.measure.contender import Contender, stage
from devices.measure.measurement import DeviceFacts, Dropped, Measurement, Repetition


def measure_in_turns(
    new: Contender, old: Contender, device: DeviceFacts, driver: Driver, plan: Plan, rounds: int, step: Step
) -> tuple[Measurement, Measurement]:
    """`rounds` times A B B A: two sessions of each artifact a round, with the plan's repetitions in each.

    Raises DeviceError and TransportError; there are no partial measurements.
    """
    whole = dataclasses.replace(plan, repetitions=2 * rounds * plan.repetitions)
    for artifact in (new, old):
        check_context(artifact, plan)
        stage(driver, artifact, functools.partial(step, 0))
    before = driver.conditions()
    made: tuple[list[Repetition], list[Repetition]] = ([], [])
    dropped: list[Dropped] = []
    for session in range(2 * rounds):
        for which in (0, 1) if session % 2 == 0 else (1, 0):
            own = made[which]
            while len(own) < (session + 1) * plan.repetitions:
                counted = functools.partial(_count_from, step, len(made[1 - which]) * (plan.warmups + 1))
                repetition = repeat((new, old)[which], driver, whole, len(own), counted)
                if isinstance(repetition, Repetition):
                    own.append(dataclasses.replace(repetition, session=session))
                else:
                    dropped.append(repetition)
                    give_up(dropped)
    conditions, pair = (before, driver.conditions()), uuid.uuid4().hex
    both = (
        dataclasses.replace(assemble(artifact, device, whole, conditions, own, dropped), pair=pair)
        for artifact, own in zip((new, old), made, strict=True)
    )
    candidate, baseline = both
    return candidate, baseline


def _count_from(step: Step, first: int, done: int, doing: str) -> None:
    step(first + done, doing)
