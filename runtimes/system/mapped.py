"""Pages of a mapped file that an engine has read once and copied in its own order: memory that nobody needs."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path

EVERY_S = 0.5
_MADV_DONTNEED = 4  # Linux's number, on x86-64 and ARM alike


@contextlib.contextmanager
def released(path: Path) -> Iterator[None]:
    """Release the pages of `path`, and of files whose names begin with it, now and then while the body runs and at its
    end. So the peak of a model that is loading does not have its weights twice."""
    ended = threading.Event()

    def release_now_and_then() -> None:
        while not ended.wait(EVERY_S):
            release(path)

    thread = threading.Thread(target=release_now_and_then, name="release", daemon=True)
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
    beginning = str(path.resolve())
    with contextlib.suppress(OSError):
        for start, end, name, written in _mappings():
            if name.startswith(beginning) and not written:
                ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def _mappings() -> Iterator[tuple[int, int, str, bool]]:
    """This process's: first address, end, file, and whether pages were written, which are not in the file. Raises
    OSError."""
    start, end, name = 0, 0, ""
    with Path("/proc/self/smaps").open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            word, *rest = line.split(maxsplit=1)
            if word == "Anonymous:":
                yield start, end, name, not rest[0].startswith("0 ")
            elif not word.endswith(":"):
                start, end = (int(each, 16) for each in word.split("-"))
                name = " ".join(line.split(maxsplit=5)[5:]).rstrip("\n")
