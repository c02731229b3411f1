"""How long we wait for a device, in one value: hosts, drivers and agents are given it, and tests give a shorter one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Named limits in seconds. `Timeouts()` holds the defaults; `dataclasses.replace` changes one of them."""

    connect_s: float = 10.0  # until a connection is made, or a device appears
    command_s: float = 60.0  # for a command that only reads or writes something small
    diagnose_s: float = 20.0  # to find out why a device was lost
    end_s: float = 10.0  # for a process to exit after its input has ended
    # For an agent (devices.transports.remote_tokens):
    load_s: float = 600.0  # until its ready line
    ping_s: float = 5.0  # between two pings
    silence_s: float = 120.0  # without any line from it, pongs included
    progress_s: float = 600.0  # without a token of the answer that is being read
