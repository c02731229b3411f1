"""Which devices the adb server sees, and in which state. It waits for a device to come, but fixes nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from devices.transports.host import last_lines
from runtimes.errors import TransportError

CALL_S = 30.0  # starting the server takes 3 s on a slow machine

# state -> what to do. `adb devices` knows more; those end here as "in state ...".
MEND = {
    "offline": "the phone does not answer adb: plug the cable anew, or run `adb reconnect offline`",
    "unauthorized": "unlock the phone and tap Allow in its dialog 'Allow USB debugging?'",
    "authorizing": "unlock the phone and tap Allow in its dialog 'Allow USB debugging?'",
    "no permissions": "this user may not open the USB device: install udev rules (apt-get install android-sdk-platform-"
    "tools-common), join group plugdev, plug it anew",
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


def call_adb(command: Sequence[str], deadline_s: float = CALL_S) -> str:
    """stdout of one of adb's own commands. Raises TransportError."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=deadline_s, check=False)
    except subprocess.TimeoutExpired:
        raise TransportError(
            f"adb did not answer in {deadline_s:.0f} s; run `adb kill-server` and try again", command=command
        ) from None
    except OSError as error:
        raise TransportError(f"adb cannot be run ({error.strerror})", command=command) from error
    if done.returncode != 0:
        raise TransportError(
            "adb failed", command=command, exit_code=done.returncode, last_lines=last_lines(done.stderr + done.stdout)
        )
    return done.stdout.decode("utf-8", "replace")


def list_devices(client: Client) -> list[Listed]:
    """All that the server sees, in every state. Starts the server where none runs. Raises TransportError."""
    return parse_devices(call_adb([*adb_command(client), "devices", "-l"]))


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


def choose_device(serial: str | None, client: Client, wait_s: float = 0.0) -> Listed:
    """The ready device of this serial; with None the only one. Waits up to `wait_s` for it to be there.

    A serial HOST:PORT that the server does not know, or has lost, is connected to. Raises TransportError, which says
    for each state what to do.
    """
    until_s = time.monotonic() + wait_s
    devices = list_devices(client)
    if Listed(serial=serial or "", state="offline", model=None) in devices and ":" in (serial or ""):
        # The server tries again by itself, but only after 10 s.
        call_adb([*adb_command(client), "disconnect", serial or ""])
        devices = list_devices(client)
    while True:
        if serial is not None and ":" in serial and serial not in {device.serial for device in devices}:
            call_adb([*adb_command(client), "connect", serial])
            devices = list_devices(client)
        try:
            return _choose(serial, devices)
        except TransportError:
            # A server that has just started finds its USB devices a second later.
            if time.monotonic() >= until_s:
                raise
            time.sleep(0.25)
            devices = list_devices(client)


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
        fix = MEND.get(device.state, "see `adb devices`")
        raise TransportError(f"the device {device.serial} is in state {device.state!r}: {fix}")
    return device
