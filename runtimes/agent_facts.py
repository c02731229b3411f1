"""What an agent tells of itself in its ready line. None for what the system does not tell."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, Literal

from export.artifact import Artifact
from runtimes.cores import available_cores
from runtimes.wire import CAPABILITIES, MAX_LINE_BYTES, PROTOCOL

LIBRARIES = ("executorch", "numpy", "onnxruntime", "onnxruntime-genai", "torch")


def describe(artifact: Artifact, threads: int | None) -> dict[str, Any]:
    """The part of the ready line that does not depend on this moment."""
    manifest = artifact.manifest
    return {
        "event": "ready",
        "protocol": PROTOCOL,
        "agent": f"phi-edge {_version('phi-edge') or 'from source'} python",
        "pid": os.getpid(),
        "artifact": manifest.digest(),
        "format": manifest.format,
        "context_tokens": manifest.context_tokens,
        "vocab_size": manifest.model.vocab_size,
        "threads": available_cores() if threads is None else threads,
        "capabilities": list(CAPABILITIES),
        "versions": versions(),
        "max_line_bytes": MAX_LINE_BYTES,
    }


def versions() -> dict[str, str]:
    """Python's version, and those of the known libraries that this process really loaded."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        if name.replace("-", "_") in sys.modules and (version := _version(name)):
            found[name] = version
    return found


def weights(artifact: Artifact) -> list[Path]:
    """The files that make up the artifact's size; a runtime may never read the small ones beside them."""
    files = artifact.manifest.files
    largest = max(file.bytes for file in files.values())
    return [artifact.folder / name for name, file in files.items() if file.bytes * 20 >= largest]


def load_mode(artifact: Artifact) -> Literal["mmap", "read"] | None:
    """`mmap` if the artifact's largest file is mapped into this process."""
    largest = max(artifact.manifest.files, key=lambda name: artifact.manifest.files[name].bytes)
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    path = str((artifact.folder / largest).resolve())
    return "mmap" if any(line.endswith(path) for line in maps.splitlines()) else "read"


def kernel_text(name: str) -> str | None:
    """A value of /proc/sys/kernel."""
    try:
        return (Path("/proc/sys/kernel") / name).read_text(encoding="ascii").strip()
    except OSError:
        return None


def age_s() -> float | None:
    """Seconds since the kernel started this process, in its ticks of 10 ms."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
        started_s = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return age if 0 <= age < 1e6 else None  # an emulator may leave the field at 0


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
