"""Memory by the page, for KV caches: pages that cost nothing until they are written, and pages that are in the address
space at several places."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

# Linux's numbers, on x86-64 and ARM alike, which Python's mmap does not have.
_PROT_NONE, _MAP_FIXED, _MAP_NORESERVE = 0, 0x10, 0x4000
_FAILED = ctypes.c_void_p(-1).value

_LIVE: weakref.WeakSet[Mirrored] = weakref.WeakSet()  # those of this process


def fresh_pages(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeroes that cost memory only once a position is written.

    Every head has rows of its own, megabytes apart: on the huge pages that numpy asks for, the first token would take
    the whole cache (3 GB for Phi-3-mini at 4096 tokens, and 4 s to clear it).
    """
    import numpy as np

    pages = mmap.mmap(-1, math.prod(shape) * np.dtype(dtype).itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)


def grants(size: int) -> bool:
    """Whether the system gives a process so many bytes more."""
    try:
        mmap.mmap(-1, size).close()
    except (OSError, OverflowError, ValueError, MemoryError):
        return False
    return True


class Mirrored:
    """`size` bytes of zeroes, a multiple of `mmap.PAGESIZE`, at `times` places one behind the other: what is written at
    one is read at all. Linux only. It must live as long as its arrays.

    The kernel counts a page as resident at each place where it was touched; `mirrored_bytes` counts it once.
    """

    def __init__(self, size: int, times: int) -> None:
        """Raises OSError where the system refuses."""
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd_create")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self.address = _map(None, size * times, _PROT_NONE, flags, -1)
        weakref.finalize(self, _unmap, self.address, size * times)
        self._file = os.memfd_create("phi-edge")
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, size)
        for place in range(times):
            at = self.address + place * size
            _map(at, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, self._file)
        self._size = size
        _LIVE.add(self)

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The first place as an array."""
        import numpy as np

        memory = (ctypes.c_uint8 * self._size).from_address(self.address)
        return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    @property
    def resident_bytes(self) -> int:
        """What it takes, each page counted once."""
        return os.fstat(self._file).st_blocks * 512


def mirrored_bytes() -> int | None:
    """What all such memory of this process takes, each page counted once; None where there is none."""
    live = list(_LIVE)
    return sum(each.resident_bytes for each in live) if live else None


def _map(address: int | None, size: int, protection: int, flags: int, file: int) -> int:
    """mmap at a place, which Python's own cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    got: int | None = library.mmap(address, size, protection, flags, file, 0)
    if got is None or got == _FAILED:
        raise OSError(ctypes.get_errno(), f"mmap of {size} bytes: {os.strerror(ctypes.get_errno())}")
    return got


def _unmap(address: int, size: int) -> None:
    library = ctypes.CDLL(None)
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.munmap(address, size)
