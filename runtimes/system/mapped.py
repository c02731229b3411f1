"""Pages of a mapped file that an engine has read once and copied in its own order: memory that nobody needs.

/proc/self/pagemap says what of a mapping is in memory and whether it was written. /proc/self/smaps does so, too, and
counts all the rest of the process: 25 ms beside Phi-3-mini, not 2 to 5.
https://docs.kernel.org/admin-guide/mm/pagemap.html
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from collections.abc import Iterator, Set
from pathlib import Path

SPARE_BYTES = 8 << 20  # of a file's pages that may be in memory before they are released
EVERY_S = 0.001  # how often that is looked at; an engine reads up to 7 MB meanwhile
Mapping = tuple[int, int]  # its first address and its end
_MADV_DONTNEED = 4  # Linux's number, on x86-64 and ARM alike
_ENTRY_BYTES = 8
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61  # of a page's entry


@contextlib.contextmanager
def released(path: Path) -> Iterator[None]:
    """Release the pages of `path`, and of files whose names begin with it, as the body reads them, and at its end. So
    the peak of a model that is loading does not have its weights twice."""
    ended = threading.Event()

    def release_as_read() -> None:
        left, given, done = _file_bytes(), set[Mapping](), set[Mapping]()
        while not ended.wait(EVERY_S):
            if _file_bytes() - left > SPARE_BYTES:
                now = release(path, done)
                done |= given - now  # an engine reads a tensor once; there is less to look at so
                left, given = _file_bytes(), now

    thread = threading.Thread(target=release_as_read, name="release", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        release(path)


def release(path: Path, done: Set[Mapping] = frozenset()) -> set[Mapping]:
    """Give back what this process has in memory of `path`, and of files whose names begin with it, but for mappings in
    `done`; -> those that had something. What is read again comes from the file. Linux only; elsewhere nothing
    happens."""
    given = set()
    with contextlib.suppress(OSError), Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for start, end in _mappings(str(path.resolve())):
            if (start, end) not in done and _holds_only_file_pages(pagemap.fileno(), start, end):
                ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
                given.add((start, end))
    return given


def _file_bytes() -> int:
    """What this process has in memory of files, its libraries' too; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE
    except OSError:
        return 0


def _mappings(beginning: str) -> Iterator[Mapping]:
    """This process's mappings of the files whose names begin so. Raises OSError."""
    name = b" " + os.fsencode(beginning)
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        if name in line:
            start, end = line.split(maxsplit=1)[0].split(b"-")
            yield int(start, 16), int(end, 16)


def _holds_only_file_pages(pagemap: int, start: int, end: int) -> bool:
    """Whether something of this mapping is in memory and none of that was written: written pages are nowhere else."""
    import numpy as np

    pages, first = (end - start) // mmap.PAGESIZE, start // mmap.PAGESIZE
    entries = np.frombuffer(os.pread(pagemap, pages * _ENTRY_BYTES, first * _ENTRY_BYTES), np.uint64)
    held = entries[entries >= _SWAPPED]  # it, or _PRESENT
    return held.size > 0 and bool(np.all(held & np.uint64(_OF_FILE)))
