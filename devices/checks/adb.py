"""What `phi-edge doctor` checks on an Android phone: one finding each, with what fixes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from devices.checks.board import disk, judge_energy, judge_memory
from devices.drivers.adb_conditions import read_adb_conditions
from devices.drivers.driver import Finding
from devices.energy.phone import what_tells
from devices.transports.adb.devices import Client, list_devices
from devices.transports.adb.host import AdbHost
from devices.transports.timeouts import Timeouts
from runtimes.errors import TransportError

ABI = "arm64-v8a"
ELF_AARCH64 = 183
HOT_STATUS = 2  # Android's THERMAL_STATUS_MODERATE: it begins to throttle


def examine_phone(
    client: Client,
    connect: Callable[[], AdbHost],
    timeouts: Timeouts,
    *,
    serial: str | None,
    folder: str,
    program: str | None,
    libraries: Sequence[str],
) -> Iterator[Finding]:
    """A phone that cannot be reached is a finding, not an error. The names are those of its row in lab.toml."""
    try:
        listed = list_devices(client, timeouts)
        lacking = not listed and ":" not in (serial or "")  # one on the network is connected to below
        yield Finding(
            what="adb devices",
            state="wrong" if lacking else "ok",
            seen=", ".join(f"{each.serial} {each.state}" for each in listed) or "none",
            fix="plug a phone in, and allow USB debugging in its developer options" if lacking else None,
        )
        host = connect()
    except TransportError as error:
        yield Finding(
            what="reachable", state="wrong", seen=error.message, fix="do that, then check with `adb devices -l`"
        )
        return
    yield from _files(program, libraries)
    try:
        yield from _phone(host, folder)
    except TransportError as error:
        yield Finding(what="phone", state="wrong", seen=error.message, fix="unplug it, plug it in again, and try again")


def _files(program: str | None, libraries: Sequence[str]) -> Iterator[Finding]:
    for name in (*([] if program is None else [program]), *libraries):
        wrong = _wrong(Path(name).expanduser())
        yield Finding(
            what=Path(name).name,
            state="wrong" if wrong else "ok",
            seen=f"{name} is {wrong}" if wrong else name,
            fix="correct lab.toml, or build it: docs/android.md" if wrong else None,
        )
    if program is None:
        fix = "build the native agent (runtimes/native/README.md) and name it in lab.toml: program"
        yield Finding(what="program", state="wrong", seen="lab.toml names none", fix=fix)


def _wrong(path: Path) -> str | None:
    """Why a phone cannot run this program or load this library; a script is not checked."""
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError:
        return "not a file"
    machine = int.from_bytes(head[18:20], "little")
    return f"not for {ABI} (ELF machine {machine})" if head[:4] == b"\x7fELF" and machine != ELF_AARCH64 else None


def _phone(host: AdbHost, folder: str) -> Iterator[Finding]:
    limit_s = host.timeouts.command_s
    abi = host.run(["getprop", "ro.product.cpu.abi"], deadline_s=limit_s).stdout.decode().strip()
    yield Finding(
        what="processor",
        state="ok" if abi == ABI else "wrong",
        seen=abi or "unknown",
        fix=None if abi == ABI else f"a phone with {ABI}, or a program and libraries for {abi}",
    )
    fault = _folder_fault(host, folder)
    yield Finding(
        what="folder",
        state="wrong" if fault else "ok",
        seen=f"{folder} {fault}" if fault else folder,
        fix='folder = "/data/local/tmp/phi-edge" in lab.toml' if fault else None,
    )
    if fault is None:
        yield disk(folder, host.files.free_bytes(folder), f"adb shell rm -r {folder}/artifacts")
    seen = read_adb_conditions(host)
    yield from judge_memory(seen)
    if seen.thermal_status is not None:
        hot = seen.thermal_status >= HOT_STATUS
        fix = "let it cool; take it out of its case"
        yield Finding(
            what="thermal status",
            state="warning" if hot else "ok",
            seen=str(seen.thermal_status),
            fix=fix if hot else None,
        )
    if seen.battery_share is not None:
        low = seen.battery_share < 0.2 and not seen.battery_charging
        power = "charging" if seen.battery_charging else "on battery"
        yield Finding(
            what="battery",
            state="warning" if low else "ok",
            seen=f"{seen.battery_share:.0%}, {power}",
            fix="charge it: phones slow down when low" if low else None,
        )
    yield judge_energy(what_tells(host))


def _folder_fault(host: AdbHost, folder: str) -> str | None:
    """Why programs cannot be brought there and run. Shared storage, such as /sdcard, takes files and runs none."""
    steps = {
        "cannot be written": 'mkdir -p "$1" && echo "exit 0" >"$1/.probe"',
        "is a place where no program runs": 'chmod 755 "$1/.probe" && "$1/.probe"',
    }
    try:
        for fault, step in steps.items():
            if host.run(["sh", "-c", step, "sh", folder], deadline_s=host.timeouts.command_s).exit_code != 0:
                return fault
    finally:
        host.run(["rm", "-f", f"{folder}/.probe"], deadline_s=host.timeouts.command_s)
    return None
