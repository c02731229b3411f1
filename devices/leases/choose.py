"""From a lab to the store that keeps a device's leases: labgrid's coordinator for a place, else a file of SQLite."""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from devices.lab import Device, Lab
from devices.leases.labgrid import LabgridStore
from devices.leases.lease import TIMES, Lease, LeaseTimes, Say, Store, leased
from devices.leases.sqlite import SqliteStore
from runtimes.terminal import one_line

FILE = "phi-edge/leases.sqlite"


def open_store(lab: Lab, device: Device, times: LeaseTimes = TIMES) -> Store:
    """The store of a device's leases. It connects when it is first asked for something."""
    if device.place is not None and lab.leases.coordinator is not None:
        return LabgridStore(lab.leases.coordinator, times)
    return SqliteStore(lease_file(lab), times)


def lease_key(device: Device) -> str:
    """The device's key in its store."""
    return device.place if device.place is not None else device.key()


def lease_file(lab: Lab) -> Path:
    """The file of SQLite: of the lab file, or one of this user; among temporary files where there is no home."""
    if lab.leases.file is not None:
        return Path(lab.leases.file).expanduser()
    try:
        file = _state_folder() / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that is not there, or may not be written to, as in some containers
        user = os.getuid() if sys.platform != "win32" else getpass.getuser()
        return Path(tempfile.gettempdir()) / f"phi-edge-{user}" / FILE
    return file


def _state_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


@contextlib.contextmanager
def lease_device(
    lab: Lab, name: str, job: str, *, wait_s: float = 0.0, say: Say = lambda _: None, times: LeaseTimes = TIMES
) -> Iterator[Lease]:
    """Have a device of the lab for the time of a `with`. Raises LabError and LeaseError."""
    device = lab.device(name)
    with (
        contextlib.closing(open_store(lab, device, times)) as store,
        leased(store, lease_key(device), name, one_line(job), wait_s=wait_s, say=say, times=times) as lease,
    ):
        yield lease
