"""What is in the lab now: each device of the lab file, asked what it is; phones that it lacks; and who uses what."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from devices.drivers.adb import AdbDevice
from devices.drivers.identity import Identity
from devices.drivers.table import open_driver
from devices.errors import DeviceError
from devices.lab import Device, Lab
from devices.leases.choose import lease_key, open_store
from devices.leases.lease import Held
from devices.transports.adb.devices import FIXES, LOCAL_CLIENT, Client, Listed, list_devices
from devices.transports.timeouts import DEFAULT_TIMEOUTS
from runtimes.errors import RuntimesError, TransportError

MOST_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One device. Its state is `ready`, `in use`, adb's word for a phone that is not ready, or `away`."""

    name: str | None  # None: the lab file lacks it
    transport: str
    key: str
    state: str
    identity: Identity | None
    in_use_by: str | None
    note: str | None  # why it is away, and what to do


def take_inventory(lab: Lab) -> list[Entry]:
    """Every device of the lab, asked at the same time, then phones that adb sees beside them. Raises LeaseError."""
    held = _held(lab)
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        looks = [pool.submit(_look, name, device, held) for name, device in lab.devices.items()]
        found = [look.result() for look in looks]
    return found + _strangers(lab)


def _held(lab: Lab) -> Mapping[str, Held]:
    """By key. Each store is asked once."""
    stores = {(device.place is not None): open_store(lab, device) for device in lab.devices.values()}
    found: dict[str, Held] = {}
    for store in stores.values():
        with contextlib.closing(store):
            found |= {each.device: each for each in store.held()}
    return found


def _look(name: str, device: Device, held: Mapping[str, Held]) -> Entry:
    lease = held.get(lease_key(device))
    identity, state, note = None, "ready", None
    try:
        with contextlib.closing(open_driver(name, device)) as driver:
            identity = driver.identify()
    except (DeviceError, RuntimesError) as error:
        state, note = _state(device), " ".join(str(error).split())
    if lease is not None and state == "ready":
        state = "in use"
    return Entry(
        name=name,
        transport=device.transport,
        key=lease_key(device),
        state=state,
        identity=identity,
        in_use_by=None if lease is None else str(lease.holder),
        note=note,
    )


def _state(device: Device) -> str:
    """Of a device that does not answer."""
    if isinstance(device, AdbDevice):
        for listed in _listed(Client(device.adb, device.server)):
            if device.serial in (None, listed.serial) and listed.state != "device":
                return listed.state
    return "away"


def _strangers(lab: Lab) -> list[Entry]:
    """Phones that adb sees and the lab file does not name."""
    rows = [device for device in lab.devices.values() if isinstance(device, AdbDevice)]
    named = {row.serial for row in rows}
    if None in named:  # the only phone, whichever that is
        return []
    clients = {Client(row.adb, row.server) for row in rows} or {LOCAL_CLIENT}
    return [
        _stranger(listed, client) for client in _installed(clients) for listed in _listed(client)
        if listed.serial not in named
    ]  # fmt: skip


def _stranger(listed: Listed, client: Client) -> Entry:
    fix = FIXES.get(listed.state, "see `adb devices`")
    return Entry(
        name=None,
        transport="adb",
        key=f"adb:{client.server or ''}:{listed.serial}",
        state="ready" if listed.state == "device" else listed.state,
        identity=Identity(serial=listed.serial, model=listed.model, memory_bytes=None, system=None),
        in_use_by=None,
        note=f'add it to the lab file: serial = "{listed.serial}"' if listed.state == "device" else fix,
    )


def _installed(clients: Iterable[Client]) -> list[Client]:
    return [client for client in clients if shutil.which(client.program) is not None]


def _listed(client: Client) -> Sequence[Listed]:
    try:
        return list_devices(client, DEFAULT_TIMEOUTS)
    except TransportError:  # the device's own look says why
        return []
