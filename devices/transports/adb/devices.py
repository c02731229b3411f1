"""Which devices the adb server sees, and in which state. It waits for a device to come, but fixes nothing."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

from devices.transports.child import run_child
from devices.transports.host import last_lines
from devices.transports.timeouts import Timeouts
from runtimes.errors import TransportError

# state -> what to do. `adb devices` knows more; those end here as "in state ...".
FIXES = {
    "offline": "the phone does not answer adb: unplug the cable and plug it in again, or run `adb reconnect offline`",
    "unauthorized": "unlock the phone and tap Allow in its dialog 'Allow USB debugging?'",
    "authorizing": "unlock the phone and tap Allow in its dialog 'Allow USB debugging?'",
    "no permissions": "this user may not open the USB device: install udev rules (apt-get install android-sdk-platform-"
    "tools-common), join the group plugdev, then plug it in again",
    "connecting": "the phone is not there yet: try again in a few seconds",
    "recovery": "the phone is in recovery: reboot it into Android (`adb reboot`)",
    "sideload": "the phone is in sideload mode: reboot it into Android (`adb reboot`)",
    "bootloader": "the phone is in its boot loader: reboot it into Android (`fastboot reboot`)",
}


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One line of `adb devices -l`."""

    serial: str
    state: str  # "device" is the good one
    model: str | None


@dataclass(frozen=True)
class Client:
    """The adb client program, and its server: HOST:PORT, or None for adb's own rule (ANDROID_ADB_SERVER_PORT, 5037)."""

    program: str = "adb"
    server: str | None = None


LOCAL_CLIENT = Client()


def adb_command(client: Client) -> list[str]:
    """The beginning of every call.

    Raises TransportError where adb is not installed.
    """
    program = shutil.which(client.program)
    if program is None:
        raise TransportError(
            "adb is not installed; on Debian: apt-get install adb; elsewhere install Android's platform-tools"
        )
    if client.server is None:
        return [program]
    name, _, port = client.server.rpartition(":")
    if not port.isdigit():
        raise TransportError(f"the adb server {client.server!r} is not HOST:PORT; correct `server` in lab.toml")
    # -H makes the client refuse to start a server, so it is left out for this machine's.
    return [program, *(() if name in ("127.0.0.1", "localhost") else ("-H", name)), "-P", port]


def call_adb(client: Client, *words: str, deadline_s: float) -> str:
    """stdout of one of adb's own commands. Raises TransportError."""
    command = [*adb_command(client), *words]
    done = run_child(command, deadline_s=deadline_s)
    if done.exit_code != 0:
        raise TransportError(
            "adb failed", command=command, exit_code=done.exit_code, last_lines=last_lines(done.stderr + done.stdout)
        )
    return done.stdout.decode("utf-8", "replace")


def list_devices(client: Client, timeouts: Timeouts) -> list[Listed]:
    """All that the server sees, in every state. Starts the server where none runs. Raises TransportError."""
    return parse_devices(call_adb(client, "devices", "-l", deadline_s=timeouts.command_s))


def parse_devices(text: str) -> list[Listed]:
    """The lines of `adb devices -l`."""
    found = []
    for line in text.splitlines():
        if line.startswith(("List of devices", "*")) or not line.strip():
            continue
        serial, _, rest = line.partition(" ")
        rest = rest.strip()
        state = "no permissions" if rest.startswith("no permissions") else rest.split(" ", 1)[0]
        model = re.search(r"\bmodel:(\S+)", rest)
        found.append(Listed(serial=serial, state=state, model=model[1] if model else None))
    return found


def choose_device(serial: str | None, client: Client, timeouts: Timeouts) -> Listed:
    """The ready device of this serial; with None the only one. Waits up to `connect_s` for it to appear.

    A serial HOST:PORT that the server does not know, or has lost, is connected to. Raises TransportError, which says
    for each state what to do.
    """
    until_s = time.monotonic() + timeouts.connect_s
    devices: Sequence[Listed] = list_devices(client, timeouts)
    while True:
        if serial is not None and ":" in serial:
            devices = _connected(serial, devices, client, timeouts)
        try:
            return _choose(serial, devices)
        except TransportError:
            # A server that has just started finds its USB devices a second later.
            if time.monotonic() >= until_s:
                raise
            time.sleep(0.25)
            devices = list_devices(client, timeouts)


def _connected(serial: str, devices: Sequence[Listed], client: Client, timeouts: Timeouts) -> Sequence[Listed]:
    """The list after the server was asked to connect to HOST:PORT, unless it is connected."""
    states = {device.serial: device.state for device in devices}
    if states.get(serial) == "offline":
        # The server tries again by itself, but only after 10 s. It may have dropped the device since.
        with contextlib.suppress(TransportError):
            call_adb(client, "disconnect", serial, deadline_s=timeouts.command_s)
    elif serial in states:
        return devices
    call_adb(client, "connect", serial, deadline_s=timeouts.command_s)
    return list_devices(client, timeouts)


def _choose(serial: str | None, devices: Sequence[Listed]) -> Listed:
    seen = ", ".join(f"{device.serial} ({device.state})" for device in devices) or "none"
    if serial is None:
        if not devices:
            raise TransportError(
                "adb sees no device; plug one in and allow USB debugging in its developer options (see `adb devices`)"
            )
        if len(devices) > 1:
            raise TransportError(f'adb sees several devices ({seen}); name one in lab.toml: serial = "..."')
        device = devices[0]
    else:
        matching = [device for device in devices if device.serial == serial]
        if not matching:
            raise TransportError(
                f"adb does not see device {serial}; it sees: {seen}; plug it in, or correct its serial"
            )
        device = matching[0]
    if device.state != "device":
        fix = FIXES.get(device.state, "see `adb devices`")
        raise TransportError(f"the device {device.serial} is in state {device.state!r}: {fix}")
    return device
