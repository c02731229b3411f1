"""The kernel's page cache: how much of a file it contains, and how to drop it. Linux only; elsewhere None."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

PROBES = 64  # pages looked at in each file


def drop(paths: Sequence[Path]) -> None:
    """Ask the kernel to forget the files' pages. It may keep some (mapped by another process): see `cached_share`."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # a page that was not written yet cannot be dropped
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def cached_share(paths: Sequence[Path]) -> float | None:
    """The share of all bytes that is cached, from probed pages; None where the file system does not report it."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    try:
        sizes = [path.stat().st_size for path in paths]
        cached = [size * _share(path, size) for path, size in zip(paths, sizes, strict=True) if size]
    except OSError:
        return None  # tmpfs, for one, refuses RWF_NOWAIT
    return sum(cached) / sum(sizes) if sum(sizes) else None


def _share(path: Path, size: int) -> float:
    hits = 0
    handle = os.open(path, os.O_RDONLY)
    try:
        # Backwards: a probe that misses may start reading ahead, and what is ahead was probed already.
        for number in reversed(range(PROBES)):
            try:
                hits += os.preadv(handle, [bytearray(1)], size * number // PROBES, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
    finally:
        os.close(handle)
    return hits / PROBES
