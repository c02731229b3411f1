"""Windows' graphics adapters, and the memory that this process uses on them, read through ctypes.

Sources: dxgi.h, dxgi1_4.h and d3d12.h. Elsewhere than on Windows there are no adapters to list.
"""

from __future__ import annotations

import ctypes
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

FACTORY = uuid.UUID("770aae78-f26f-4dba-a829-253c83d1b387")  # IDXGIFactory1
ADAPTER3 = uuid.UUID("645967a4-1392-4310-a798-8053ce3e93fd")  # IDXGIAdapter3
DEVICE = uuid.UUID("189819f1-1db6-4b57-be54-1821339b85f7")  # ID3D12Device
FEATURE_LEVEL_11_0 = 0xB000  # the lowest that DirectML supports
SOFTWARE = 2  # DXGI_ADAPTER_FLAG_SOFTWARE
LOCAL, NON_LOCAL = 0, 1  # DXGI_MEMORY_SEGMENT_GROUP
# Places in the interfaces' tables of functions.
QUERY_INTERFACE, RELEASE, GET_DESC1, ENUM_ADAPTERS1, QUERY_VIDEO_MEMORY = 0, 2, 10, 12, 14


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One graphics adapter. Memory in bytes; shared memory is the host's."""

    name: str
    luid: str  # HIGH:LOW, as onnxruntime-genai's option `luid` has it
    dedicated_bytes: int
    shared_bytes: int
    software: bool
    d3d12: bool = True  # it makes Direct3D 12 devices, which DirectML needs

    def describe(self) -> str:
        """One line for a person."""
        kind = (", software" if self.software else "") + ("" if self.d3d12 else ", without Direct3D 12")
        return f"{self.name} (LUID {self.luid}, {self.dedicated_bytes / 1e9:.1f} GB of its own{kind})"


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


def list_adapters() -> list[Adapter]:
    """The adapters in Windows' own order; none elsewhere."""
    with _adapters() as pointers:
        return [_describe(pointer) for pointer in pointers]


class GpuMeter:
    """What this process uses on all adapters together. The adapters are found once and kept open, so it can be read
    often."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self._adapters = self._held.enter_context(_adapters())

    def usage(self) -> tuple[int, int] | None:
        """Bytes of the adapters' own memory, and of the host's that they share; None where no adapter reports it."""
        pairs = [(_video_usage(pointer, LOCAL), _video_usage(pointer, NON_LOCAL)) for pointer in self._adapters]
        known = [(local, shared) for local, shared in pairs if local is not None and shared is not None]
        return (sum(local for local, _ in known), sum(shared for _, shared in known)) if known else None


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
    return adapter_of(desc, d3d12=_makes_d3d12(pointer))


def _makes_d3d12(pointer: ctypes.c_void_p) -> bool:
    try:
        create = _library("d3d12").D3D12CreateDevice
    except (OSError, AttributeError):
        return False
    create.restype = ctypes.c_int32
    # Without a place for the device it only reports whether it could (S_FALSE).
    return int(create(pointer, ctypes.c_uint32(FEATURE_LEVEL_11_0), _guid(DEVICE), None)) >= 0


def adapter_of(desc: Any, *, d3d12: bool) -> Adapter:
    """DXGI_ADAPTER_DESC1 -> Adapter."""
    return Adapter(
        name=desc.description,
        luid=f"{desc.luid_high}:{desc.luid_low}",
        dedicated_bytes=desc.dedicated_video,
        shared_bytes=desc.shared,
        software=bool(desc.flags & SOFTWARE),
        d3d12=d3d12,
    )


def _video_usage(pointer: ctypes.c_void_p, group: int) -> int | None:
    newer, memory = ctypes.c_void_p(), _VideoMemory()
    if _call(pointer, QUERY_INTERFACE, _guid(ADAPTER3), ctypes.byref(newer)) != 0:
        return None
    try:
        status = _call(newer, QUERY_VIDEO_MEMORY, ctypes.c_uint32(0), ctypes.c_uint32(group), ctypes.byref(memory))
        return int(memory.usage) if status == 0 else None
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
