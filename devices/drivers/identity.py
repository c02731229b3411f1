"""What a device says that it is, for the lab's inventory: one short call, before anything is brought to it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from devices.transports.host import Host
from runtimes.system.conditions import Conditions
from runtimes.system.proc import parse_meminfo

_MARK = "@phi-edge "
_POSIX = {
    "serial": "cat /proc/device-tree/serial-number || cat /sys/class/dmi/id/product_serial",
    "model": "cat /proc/device-tree/model || sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1",
    "memory": "cat /proc/meminfo",
    "system": "sed -n 's/^PRETTY_NAME=\"\\(.*\\)\"/\\1/p' /etc/os-release; uname -srm",
}
_ANDROID = {
    "serial": "getprop ro.serialno",
    "model": "getprop ro.product.manufacturer; getprop ro.product.model; getprop ro.soc.manufacturer; "
    "getprop ro.soc.model",
    "memory": "cat /proc/meminfo",
    "system": "echo Android; getprop ro.build.version.release; getprop ro.build.fingerprint",
}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """None where the device cannot say."""

    serial: str | None
    model: str | None  # the board or phone, and its SoC
    memory_bytes: int | None
    system: str | None  # and its build


def identify_posix(host: Host) -> Identity:
    """A machine with a POSIX shell. Raises TransportError."""
    return _identify(host, _POSIX)


def identify_android(host: Host) -> Identity:
    """A phone. Raises TransportError."""
    return _identify(host, _ANDROID)


def identity_of(conditions: Conditions) -> Identity:
    """Of a machine whose conditions are known."""
    return Identity(
        serial=None,
        model=conditions.cpu_model,
        memory_bytes=conditions.memory_total_bytes,
        system=conditions.system,
    )


def _identify(host: Host, commands: dict[str, str]) -> Identity:
    script = "\n".join(
        f"echo; echo '{_MARK}{name}'; {{ {command}; }} 2>/dev/null || :" for name, command in commands.items()
    )
    done = host.run(["sh", "-c", script], deadline_s=host.timeouts.command_s)
    text = done.checked("asking the device what it is").decode("utf-8", "replace").replace("\0", "")
    found = {name: rest for name, _, rest in (piece.partition("\n") for piece in text.split(f"\n{_MARK}")[1:])}
    return Identity(
        serial=_words(found.get("serial", "")),
        model=_words(found.get("model", "")),
        memory_bytes=parse_meminfo(found.get("memory", "")).total_bytes,
        system=_words(found.get("system", "")),
    )


def _words(text: str) -> str | None:
    """On one line; the same line twice, as a maker that is the SoC's too, once."""
    lines = list(dict.fromkeys(re.sub(r"\s+", " ", line).strip() for line in text.splitlines()))
    return " ".join(line for line in lines if line) or None
