"""What a machine with our Python can tell about itself: it runs `runtimes.system.energy`, and we read its lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devices.energy.meter import LineMeter
from devices.transports.host import Host
from export.strict import build, parse_json
from runtimes.errors import TransportError

MODULE = "runtimes.system.energy"


@dataclass(frozen=True)
class Source:
    """Its first line."""

    source: str | None


def what_tells(host: Host, command: Sequence[str]) -> str | None:
    """The source; None where there is none. `command` runs MODULE there. Raises TransportError."""
    done = host.run([*command, "--once"], deadline_s=host.timeouts.command_s)
    return done.facts(Source, "asking what tells its energy").source


def board_meter(host: Host, command: Sequence[str]) -> LineMeter:
    """A meter by the lines of `command`, which runs MODULE there."""
    return LineMeter(lambda: host.start(command), BoardLines())


class BoardLines:
    """See Lines."""

    optional = True

    def __init__(self) -> None:
        self.source: str | None = None

    def joules(self, line: bytes, at_s: float) -> float | None:
        """See Lines.joules."""
        try:
            said = parse_json(line)
        except ValueError as error:
            raise TransportError(f"its energy: the device answered {line[:60]!r}") from error
        if isinstance(said, dict) and "source" in said:
            self.source = build(Source, said, "its energy", TransportError).source
            return None
        joules = said.get("joules") if isinstance(said, dict) else None
        return float(joules) if isinstance(joules, int | float) else None
