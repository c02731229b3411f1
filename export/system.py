"""What this machine gives an export: cores, memory within control groups and `ulimit -v`, and installed tools.

Memory on Linux only; elsewhere it is None. https://docs.kernel.org/admin-guide/cgroup-v2.html, proc(5)
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from export.artifact import Format

# Of each export; a format's own library only with that format.
TOOLS = ("phi-edge", "torch", "onnx", "onnx-ir", "onnxruntime", "executorch", "optimum", "transformers", "tokenizers")

COLLECTED_OBJECTS = 100_000  # new objects between two looks at them


@dataclass(frozen=True)
class Room:
    """Bytes that this process may hold in memory at all, and who says so."""

    bytes: int
    source: str


def memory_room(root: Path = Path("/")) -> Room | None:
    """The narrowest limit there is; None where the system does not say. `root` is where /proc and /sys are found."""
    status = numbers(root / "proc/self/status")
    held = status.get("VmRSS", 0)
    rooms = []
    if (available := numbers(root / "proc/meminfo").get("MemAvailable")) is not None:
        rooms.append(Room(available + held, "available"))
    rooms += [Room(limit - used + held, "left by the control group") for limit, used in control_groups(root)]
    if (limit := address_space_limit(root)) is not None:
        rooms.append(Room(limit - status.get("VmSize", 0) + held, "left by ulimit -v"))
    return min(rooms, key=lambda room: room.bytes, default=None)


def control_groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used, without the page cache) of this process's memory control group and of those around it."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit_file, used_key = root / "sys/fs/cgroup", "memory.max", "anon"
        elif "memory" in controllers.split(","):
            mount, limit_file, used_key = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, stat = folder / limit_file, folder / "memory.stat"
            if limit.is_file() and stat.is_file() and (text := limit.read_text().strip()) != "max":
                yield int(text), numbers(stat, unit=1)[used_key]
            if folder == mount:
                break


def address_space_limit(root: Path) -> int | None:
    """`ulimit -v` in bytes; None where it is unlimited."""
    limits = root / "proc/self/limits"
    for line in limits.read_text().splitlines() if limits.is_file() else ():
        if line.startswith("Max address space"):
            soft = line.split()[3]
            return None if soft == "unlimited" else int(soft)
    return None


def numbers(path: Path, unit: int = 1024) -> dict[str, int]:
    """The lines `Name: 12 kB` or `name 12` of a file in /proc or /sys, in bytes."""
    words = (line.replace(":", " ").split() for line in path.read_text().splitlines()) if path.is_file() else ()
    return {line[0]: int(line[1]) * unit for line in words if len(line) > 1 and line[1].isdigit()}


def trim_heap() -> None:
    """Give the system back what this process has freed. glibc keeps blocks of up to 32 MB, and of each of Phi-3-mini's
    layers, read and forgotten, it kept 30 MB. Without glibc nothing happens."""
    with contextlib.suppress(AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def seldom_collected() -> Iterator[None]:
    """Let Python look for garbage in cycles seldom. While a model is traced, a quarter of the time went to looking at
    all objects of the libraries again and again, and next to nothing was found."""
    usual = gc.get_threshold()
    gc.set_threshold(COLLECTED_OBJECTS, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def workers() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tool_versions(format: Format) -> dict[str, str]:
    """The versions of what makes an artifact of this format, as far as it is installed."""
    names = [*TOOLS, "gguf"] if format == "gguf" else TOOLS
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
