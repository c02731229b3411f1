"""A meter beside the device: a command of this machine prints its watts, a number a line. `meter` in lab.toml names it.

A USB or socket meter, a bench supply: whatever a few lines of shell can ask.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence

from devices.energy.meter import LineMeter
from devices.errors import DeviceError
from devices.transports.child import ChildLines
from runtimes.errors import TransportError
from runtimes.system.energy.sources import PowerSum

MOST_WATTS = 100_000.0


def command_meter(command: Sequence[str]) -> LineMeter:
    """It starts the command with the block, and ends it there."""

    def start() -> ChildLines:
        try:
            return ChildLines(command)
        except TransportError as error:
            raise DeviceError(f"the meter: {error.message}; correct `meter` in lab.toml") from error

    return LineMeter(start, WattLines(command))


class WattLines:
    """See Lines."""

    optional = False

    def __init__(self, command: Sequence[str]) -> None:
        self._command = shlex.join(command)
        self.source: str | None = f"meter, {self._command}"
        self._sum = PowerSum()

    def joules(self, line: bytes, at_s: float) -> float | None:
        """See Lines.joules."""
        text = line.decode("utf-8", "replace").strip()
        watts = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,12})?", text) else math.inf
        if watts > MOST_WATTS:
            raise DeviceError(
                f"the meter `{self._command}` printed {text[:60]!r}; a line is a number of watts, such as 4.25; "
                "correct `meter` in lab.toml"
            )
        return self._sum.add(watts, at_s)
