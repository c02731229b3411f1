"""What an agent reports about itself in its ready line. None where the system does not report it."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from export.artifact import Artifact
from runtimes.agent.fields import GRAMMARS
from runtimes.agent.wire import CAPABILITIES, MAX_LINE_BYTES, PROTOCOL
from runtimes.loop.grammar import can_constrain
from runtimes.system import pagecache
from runtimes.system.boot import boot_id
from runtimes.system.cores import available_cores
from runtimes.system.packages import installed_versions

# distribution -> the module that shows whether it is loaded; on Windows they have other names
LIBRARIES = {
    **{name: name.replace("-", "_") for name in ("executorch", "numpy", "onnxruntime", "onnxruntime-genai", "torch")},
    **{f"onnxruntime-{kind}": "onnxruntime" for kind in ("directml", "gpu", "windowsml")},
    **{f"onnxruntime-genai-{kind}": "onnxruntime_genai" for kind in ("cuda", "directml", "winml")},
    "xllamacpp": "runtimes.engines.llama_library",  # which takes its library without importing it
}


def describe(artifact: Artifact, threads: int | None) -> dict[str, Any]:
    """The part of the ready line that does not depend on this moment."""
    manifest = artifact.manifest
    return describe_agent(threads) | {
        "artifact": manifest.digest(),
        "format": manifest.format,
        "context_tokens": manifest.context_tokens,
        "vocab_size": manifest.model.vocab_size,
        "capabilities": [*CAPABILITIES, *(GRAMMARS if can_constrain() else ())],
    }


def describe_agent(threads: int | None) -> dict[str, Any]:
    """What of it does not depend on the model either."""
    own = installed_versions(["phi-edge"]).get("phi-edge", "from source")
    return {
        "event": "ready",
        "protocol": PROTOCOL,
        "agent": f"phi-edge {own} python",
        "pid": os.getpid(),
        "threads": available_cores() if threads is None else threads,
        "versions": versions(),
        "max_line_bytes": MAX_LINE_BYTES,
    }


def describe_loading(files: Sequence[Path], began_s: float, cached_share: float | None) -> dict[str, Any]:
    """What is known once a model of these files is loaded, which began at `began_s` of perf_counter."""
    return {
        "boot_id": boot_id(),
        "load_s": age_s(),
        "open_s": time.perf_counter() - began_s,
        "load_mode": load_mode(files),
        "cached_share": cached_share,
    }


def cached_before(files: Sequence[Path], *, cold: bool) -> float | None:
    """0 to 1: how much of a model's weights the page cache has before they are opened; with `cold` they are dropped
    from it first. None: unknown."""
    if cold:
        pagecache.drop(files)
    return pagecache.cached_share(weights(files))


def versions() -> dict[str, str]:
    """Python's version, and those of the known libraries that this process really loaded."""
    loaded = (name for name, package in LIBRARIES.items() if package in sys.modules)
    return {"python": platform.python_version()} | installed_versions(loaded)


def weights(files: Sequence[Path]) -> list[Path]:
    """Those that make up a model's size; a runtime may never read the small ones beside them."""
    largest = max(file.stat().st_size for file in files)
    return [file for file in files if file.stat().st_size * 20 >= largest]


def load_mode(files: Sequence[Path]) -> Literal["mmap", "read"] | None:
    """`mmap` if the largest file is mapped into this process; None where the system does not report it."""
    largest = max(files, key=lambda file: file.stat().st_size)
    if sys.platform == "win32":
        return None
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    path = str(largest.resolve())
    return "mmap" if any(line.endswith(path) for line in maps.splitlines()) else "read"


def age_s() -> float | None:
    """Seconds since the kernel started this process; on Linux in its ticks of 10 ms."""
    if sys.platform == "win32":
        from runtimes.system.windows import win32

        return win32.process_age_s()
    try:
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
        started_s = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return age if 0 <= age < 1e6 else None  # an emulator may leave the field at 0
