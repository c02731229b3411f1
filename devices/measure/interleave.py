"""Two artifacts in turns, A B B A, so that what drifts (heat, a neighbour, a battery) hits both alike."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from devices.drivers.driver import Driver
from devices.errors import DeviceError
from devices.measure.bench import Plan, Step, assemble, check_context, give_up, repeat
from devices.measure.contender import Contender, stage
from devices.measure.measurement import DeviceFacts, Dropped, Measurement, Repetition
from runtimes.errors import TransportError

LOOK_ROUNDS = 8  # from one look at the figures to the next


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How often A B B A: `least` times, and then on, `most` at most, until `enough` says so of new and old."""

    least: int
    most: int
    enough: Callable[[Measurement, Measurement], bool]

    @property
    def looks(self) -> list[int]:
        """After how many rounds it is asked."""
        return [*range(self.least, self.most, LOOK_ROUNDS), self.most]


def measure_in_turns(
    new: Contender,
    old: Contender,
    device: DeviceFacts,
    driver: Driver,
    plan: Plan,
    rounds: Rounds,
    step: Step,
    say: Callable[[str], None],
) -> tuple[Measurement, Measurement]:
    """Two sessions of each artifact a round, with the plan's repetitions in each.

    Raises DeviceError and TransportError where it fails before the first look; after it, what that look saw is kept.
    """
    whole = dataclasses.replace(plan, repetitions=2 * rounds.most * plan.repetitions)
    for artifact in (new, old):
        check_context(artifact, plan)
        stage(driver, artifact, functools.partial(step, 0))
    before, pair = driver.conditions(), uuid.uuid4().hex
    made: tuple[list[Repetition], list[Repetition]] = ([], [])
    dropped: list[Dropped] = []

    def measurements() -> tuple[Measurement, Measurement]:
        conditions = before, driver.conditions()
        done = dataclasses.replace(plan, repetitions=len(made[0]))
        one, other = (
            dataclasses.replace(assemble(artifact, device, done, conditions, [*own], [*dropped]), pair=pair)
            for artifact, own in zip((new, old), made, strict=True)
        )
        return one, other

    def take_turns(session: int) -> None:
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

    seen: tuple[Measurement, Measurement] | None = None
    for first, last in itertools.pairwise([0, *rounds.looks]):
        try:
            for session in range(2 * first, 2 * last):
                take_turns(session)
            seen = measurements()
        except (DeviceError, TransportError) as error:
            if seen is None:
                raise
            say(f"the comparison ends at {first} rounds: {error}")
            break
        if rounds.enough(*seen):
            break
    assert seen is not None
    return seen


def _count_from(step: Step, first: int, done: int, doing: str) -> None:
    step(first + done, doing)
