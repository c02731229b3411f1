"""Windows' graphics adapters, and the memory that this process holds on them and on the host, asked through ctypes.

Sources: dxgi.h, dxgi1_4.h and psapi.h. Elsewhere than on Windows there is nothing to ask: no adapters, and None.
"""

from __future__ import annotations

import ctypes
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

FACTORY = uuid.UUID("770aae78-f26f-4dba-a829-253c83d1b387")  # IDXGIFactory1
ADAPTER3 = uuid.UUID("645967a4-1392-4310-a798-8053ce3e93fd")  # IDXGIAdapter3
SOFTWARE = 2  # DXGI_ADAPTER_FLAG_SOFTWARE
LOCAL, NON_LOCAL = 0, 1  # DXGI_MEMORY_SEGMENT_GROUP
# Places in the interfaces' tables of functions.
QUERY_INTERFACE, RELEASE, GET_DESC1, ENUM_ADAPTERS1, QUERY_VIDEO_MEMORY = 0, 2, 10, 12, 14


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One graphics adapter. Memory in bytes; what is shared is the host's."""

    name: str
    luid: str  # HIGH:LOW, as onnxruntime-genai's option `luid` has it
    dedicated_bytes: int
    shared_bytes: int
    software: bool

    def describe(self) -> str:
        """One line for a person."""
        kind = ", software" if self.software else ""
        return f"{self.name} (LUID {self.luid}, {self.dedicated_bytes / 1e9:.1f} GB of its own{kind})"


@dataclass(frozen=True, kw_only=True)
class WindowsMemory:
    """Of this process, in bytes. Host and GPU are never added: on a shared-memory machine they overlap."""

    peak_resident_bytes: int  # PeakWorkingSetSize
    peak_committed_bytes: int  # PeakPagefileUsage: what was paged out is in it
    gpu_local_bytes: int | None
    gpu_shared_bytes: int | None


class _Desc1(ctypes.Structure):
    _fields_ = (
        ("description", ctypes.c_wchar * 128),
        ("vendor", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("subsystem", ctypes.c_uint32),
        ("revision", ctypes.c_uint32),
        ("dedicated_video", ctypes.c_size_t),
        ("dedicated_system", ctypes.c_size_t),
        ("shared", ctypes.c_size_t),
        ("luid_low", ctypes.c_uint32),
        ("luid_high", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
    )


class _VideoMemory(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("budget", "usage", "available", "reserved"))


_COUNTERS = """peak_working_set working_set peak_paged_pool paged_pool peak_nonpaged_pool nonpaged_pool pagefile
    peak_pagefile"""


class _ProcessMemory(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        *((name, ctypes.c_size_t) for name in _COUNTERS.split()),
    )


def list_adapters() -> list[Adapter]:
    """The adapters in Windows' own order; none elsewhere."""
    with _adapters() as pointers:
        return [_describe(pointer) for pointer in pointers]


def read_windows_memory(luid: str | None) -> WindowsMemory | None:
    """What this process holds, on the host and on the adapter of that LUID; None elsewhere than on Windows."""
    if sys.platform != "win32":
        return None
    counters = _ProcessMemory(size=ctypes.sizeof(_ProcessMemory))
    kernel = _library("kernel32")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    if not kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size):
        return None
    local: int | None = None
    shared: int | None = None
    with _adapters() as pointers:
        for pointer in pointers:
            if _describe(pointer).luid == luid:
                local, shared = _video_usage(pointer, LOCAL), _video_usage(pointer, NON_LOCAL)
    return WindowsMemory(
        peak_resident_bytes=counters.peak_working_set,
        peak_committed_bytes=counters.peak_pagefile,
        gpu_local_bytes=local,
        gpu_shared_bytes=shared,
    )


@contextmanager
def _adapters() -> Iterator[list[ctypes.c_void_p]]:
    """IDXGIAdapter1 pointers, released afterwards."""
    pointers: list[ctypes.c_void_p] = []
    if sys.platform != "win32":
        yield pointers
        return
    factory = ctypes.c_void_p()
    if _library("dxgi").CreateDXGIFactory1(_guid(FACTORY), ctypes.byref(factory)) != 0:
        yield pointers
        return
    try:
        pointer = ctypes.c_void_p()
        while _call(factory, ENUM_ADAPTERS1, ctypes.c_uint32(len(pointers)), ctypes.byref(pointer)) == 0:
            pointers.append(pointer)
            pointer = ctypes.c_void_p()
        yield pointers
    finally:
        for pointer in (*pointers, factory):
            _call(pointer, RELEASE)


def _describe(pointer: ctypes.c_void_p) -> Adapter:
    desc = _Desc1()
    _call(pointer, GET_DESC1, ctypes.byref(desc))
    return adapter_of(desc)


def adapter_of(desc: Any) -> Adapter:
    """DXGI_ADAPTER_DESC1 -> Adapter."""
    return Adapter(
        name=desc.description,
        luid=f"{desc.luid_high}:{desc.luid_low}",
        dedicated_bytes=desc.dedicated_video,
        shared_bytes=desc.shared,
        software=bool(desc.flags & SOFTWARE),
    )


def _video_usage(pointer: ctypes.c_void_p, group: int) -> int | None:
    newer, memory = ctypes.c_void_p(), _VideoMemory()
    if _call(pointer, QUERY_INTERFACE, _guid(ADAPTER3), ctypes.byref(newer)) != 0:
        return None
    try:
        told = _call(newer, QUERY_VIDEO_MEMORY, ctypes.c_uint32(0), ctypes.c_uint32(group), ctypes.byref(memory))
        return int(memory.usage) if told == 0 else None
    finally:
        _call(newer, RELEASE)


def _call(pointer: ctypes.c_void_p, index: int, *arguments: Any) -> int:
    """A COM method by its place in the table."""
    table = ctypes.cast(pointer, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0]
    kinds = [ctypes.c_uint32 if isinstance(item, ctypes.c_uint32) else ctypes.c_void_p for item in arguments]
    method = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, *kinds)(table[index] or 0)
    return int(method(pointer, *arguments))


def _guid(value: uuid.UUID) -> Any:
    return (ctypes.c_char * 16).from_buffer_copy(value.bytes_le)


def _library(name: str) -> Any:
    # On 64-bit Windows there is one calling convention, and CDLL is there on every system.
    return ctypes.CDLL(name)
