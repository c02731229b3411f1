"""Is the device ready for a repetition: cool, idle, powered, not throttled? What cannot be read does not count."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from devices.errors import NotReadyError
from devices.measure.throttling import now as throttled_now
from runtimes.system.conditions import Conditions

# Background services stay below it; another program on one core of three does not.
BUSY_SHARE = 0.3
LEAST_BATTERY = 0.15
PHONE_C = 40.0  # a phone rests below it on a table; from 50 its repetitions scatter by a third
BOARD_C = 65.0  # a Raspberry Pi lowers its clock from 80 on


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """What a device must be before a repetition. `wait_s` None: it is neither waited for nor looked at."""

    wait_s: float | None = None
    below_c: float | None = None  # of its processor; None is by its kind
    poll_s: float = 3.0


NO_GATE = Readiness()


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A device that became ready."""

    conditions: Conditions
    waited_s: float


def unready(seen: Conditions, below_c: float | None = None) -> list[str]:
    """Why a repetition should not start now, one line each. Machines differ too much for a temperature of their own:
    only phones and Raspberry Pis have one without `below_c`."""
    found = []
    limit_c = below_c
    if limit_c is None and seen.thermal_status is not None:
        limit_c = PHONE_C
    elif limit_c is None and seen.throttled is not None:
        limit_c = BOARD_C
    if limit_c is not None and seen.processor_c is not None and seen.processor_c > limit_c:
        found.append(f"its processor has {seen.processor_c:.0f} \u00b0C, and {limit_c:g} are the most")
    if seen.busy_share is not None and seen.busy_share > BUSY_SHARE:
        found.append(f"it is busy ({seen.busy_share:.0%} of its cores' time); close other programs")
    if seen.thermal_status:
        found.append(f"Android's thermal status is {seen.thermal_status}")
    if seen.throttled is not None:
        found += [f"its firmware slows it down: {why}" for why in throttled_now(seen.throttled)]
    if seen.battery_share is not None and seen.battery_share < LEAST_BATTERY and not seen.battery_charging:
        found.append(f"its battery has {seen.battery_share:.0%}; plug it in")
    return found


def wait_until_ready(
    read: Callable[[], Conditions],
    readiness: Readiness,
    say: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Ready:
    """Look until the device is ready. Raises NotReadyError at the deadline: with what was wrong at the last look."""
    assert readiness.wait_s is not None
    began_s = clock()
    while True:
        seen = read()
        waited_s = clock() - began_s
        if not (reasons := unready(seen, readiness.below_c)):
            return Ready(conditions=seen, waited_s=waited_s)
        if waited_s >= readiness.wait_s:
            raise NotReadyError(f"the device was not ready after {waited_s:.0f} s: {'; '.join(reasons)}")
        say(f"waiting until it is ready: {'; '.join(reasons)}")
        sleep(min(readiness.poll_s, max(0.0, readiness.wait_s - waited_s)))
