"""How long we wait for a device, in one value: hosts, drivers and agents are given it, and tests give a shorter one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Named limits in seconds. `Timeouts()` has the defaults; `dataclasses.replace` changes one of them."""

    connect_s: float = 10.0  # until a connection is made, or a device appears
    command_s: float = 60.0  # for a command that only reads or writes something small
    remove_s: float = 300.0  # for removing a folder with all that is in it
    install_s: float = 1800.0  # for making a virtual environment, and for pip
    slowest_bytes_per_s: float = 200_000.0  # of a wire and a disk that are still worth waiting for
    alive_s: float = 5.0  # between two signs of life that ssh asks for; after three without an answer it gives up
    diagnose_s: float = 20.0  # to find out why a device was lost
    end_s: float = 10.0  # for a process to exit after its input has ended
    kill_s: float = 2.0  # for a process to be gone after it was killed, or its pipes were closed
    # For an agent (devices.transports.remote_tokens):
    load_s: float = 600.0  # until its ready line
    ping_s: float = 5.0  # between two pings
    unheard_s: float = 60.0  # without a ping from us: then the agent exits and frees the device
    silence_s: float = 120.0  # without any line from it, pongs included
    progress_s: float = 600.0  # without a token of the answer that is being read

    def transfer_s(self, size: int) -> float:
        """The limit for moving or hashing that many bytes."""
        return self.command_s + size / self.slowest_bytes_per_s


DEFAULT_TIMEOUTS = Timeouts()
