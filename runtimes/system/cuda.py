"""NVIDIA's GPUs, as CUDA counts them, read from the driver's own library through ctypes.

Source: cuda.h, the driver interface. CUDA_VISIBLE_DEVICES hides and orders them, as for every program that computes
there. Without a driver there are none to list.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
NAME_BYTES = 256
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU. `capability` is its architecture, (9, 0) for an H100."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]

    def describe(self) -> str:
        """One line for a person."""
        return (
            f"{self.name} ({self.memory_bytes / 1e9:.1f} GB, compute capability {'.'.join(map(str, self.capability))})"
        )


def list_gpus(library: str = LIBRARY) -> list[Gpu]:
    """In CUDA's order: the place is the number that its provider takes."""
    try:
        driver: Any = ctypes.CDLL(library)
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [_read(driver, place) for place in range(count.value)]


def _read(driver: Any, place: int) -> Gpu:
    device, size, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), place)
    driver.cuDeviceGetName(name, NAME_BYTES, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    capability = [ctypes.c_int(), ctypes.c_int()]
    for value, attribute in zip(capability, (MAJOR, MINOR), strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return Gpu(
        name=name.value.decode("utf-8", "replace"),
        memory_bytes=size.value,
        capability=(capability[0].value, capability[1].value),
    )
