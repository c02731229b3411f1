"""Pages of a mapped file that an engine has read once and copied in its own order: memory that nobody needs.

/proc/self/pagemap says what of a mapping is in memory and whether it was written. /proc/self/smaps does so, too, and
counts all the rest of the process: 25 ms beside Phi-3-mini, not 1. https://docs.kernel.org/admin-guide/mm/pagemap.html
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

SPARE_BYTES = 16 << 20  # of a file's pages that may be in memory before they are released
EVERY_S = 0.005  # how often that is looked at; an engine reads some megabytes meanwhile
_MADV_DONTNEED = 4  # Linux's number, on x86-64 and ARM alike
_ENTRY_BYTES = 8
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61  # of a page's entry


@contextlib.contextmanager
def released(path: Path) -> Iterator[None]:
    """Release the pages of `path`, and of files whose names begin with it, as the body reads them, and at its end. So
    the peak of a model that is loading does not have its weights twice."""
    ended = threading.Event()

    def release_as_read() -> None:
        left = _file_bytes()
        while not ended.wait(EVERY_S):
            if _file_bytes() - left > SPARE_BYTES:
                release(path)
                left = _file_bytes()

    thread = threading.Thread(target=release_as_read, name="release", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        release(path)


def release(path: Path) -> None:
    """Give back what this process has in memory of `path`, and of files whose names begin with it. What is read again
    comes from the file. Linux only; elsewhere nothing happens."""
    with contextlib.suppress(OSError), Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for start, end in _mappings(str(path.resolve())):
            if _holds_only_file_pages(pagemap, start, end):
                ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def _file_bytes() -> int:
    """What this process has in memory of files, its libraries' too; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE
    except OSError:
        return 0


def _mappings(beginning: str) -> Iterator[tuple[int, int]]:
    """First address and end of this process's mappings of the files whose names begin so. Raises OSError."""
    with Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            words = line.rstrip("\n").split(maxsplit=5)
            if words[-1].startswith(beginning):
                start, end = (int(each, 16) for each in words[0].split("-"))
                yield start, end


def _holds_only_file_pages(pagemap: BinaryIO, start: int, end: int) -> bool:
    """Whether something of this mapping is in memory and none of that was written: written pages are nowhere else."""
    import numpy as np

    pagemap.seek(start // mmap.PAGESIZE * _ENTRY_BYTES)
    entries = np.frombuffer(pagemap.read((end - start) // mmap.PAGESIZE * _ENTRY_BYTES), np.uint64)
    held = entries[entries >= _SWAPPED]  # it, or _PRESENT
    return held.size > 0 and bool(np.all(held & np.uint64(_OF_FILE)))
