"""WebGPU outside a browser: onnxruntime-ep-webgpu, a plugin of ONNX Runtime, on Vulkan, Direct3D 12 or Metal.

Which adapter is used is decided from facts that are passed in, so it can be tested anywhere. Without one the work is
refused, not given to the CPU.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from export.artifact import Artifact
from runtimes.engines.device_cache import DeviceCacheEngine
from runtimes.engines.engine import ANY_ADAPTER, Engine, Graphics
from runtimes.engines.onnx_engine import load_session, model_file, open_onnx
from runtimes.engines.webgpu_probe import check_adapter
from runtimes.errors import EngineError
from runtimes.system.telemetry import switch_telemetry_off

PROVIDER = "WebGpuExecutionProvider"
ALLOW_SOFTWARE = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"  # of the plugin, read when it is registered
VENDORS = {0x10DE: "NVIDIA", 0x1002: "AMD", 0x8086: "Intel"}  # by PCI's numbers, where the plugin gives no name
GENERIC_VENDOR = 0  # of the plugin's memory, whatever the adapter
# On an adapter with subgroups of 4, as SwiftShader's, its attention over 32 tokens and more at once is wrong.
SOFTWARE_FORWARD_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class GpuDevice:
    """One adapter as ONNX Runtime lists it. `handle` is what a session is given."""

    vendor: str
    number: int  # the vendor's number of the product
    discrete: bool
    software: bool
    handle: Any = None

    def describe(self) -> str:
        """One line for a person."""
        if self.software:
            return f"software on {self.vendor or 'this CPU'}"
        return f"{self.vendor or 'unknown vendor'} {self.number:#06x}" + (" (discrete)" if self.discrete else "")


def choose_device(devices: Sequence[GpuDevice], wanted: str | None = None) -> GpuDevice:
    """The adapter to compute on: by its place in the list or a part of its description; else the first discrete one, or
    the first. Raises EngineError where that would be software, which is not chosen unless it is named."""
    listed = "; ".join(f"{place}: {device.describe()}" for place, device in enumerate(devices)) or "none"
    if wanted is not None:
        found = [device for place, device in enumerate(devices) if _is_named(device, place, wanted)]
        if len(found) != 1:
            raise EngineError(
                f"adapter {wanted!r} matches {len(found)}; there are: {listed}; give one's number or name"
            )
        return found[0]
    hardware = [device for device in devices if not device.software]
    if not hardware:
        raise EngineError(
            f"no graphics adapter for WebGPU, so this would run on the CPU (adapters: {listed}); "
            "export for --target cpu, or allow the CPU"
        )
    return next((device for device in hardware if device.discrete), hardware[0])


def _is_named(device: GpuDevice, place: int, wanted: str) -> bool:
    return int(wanted) == place if wanted.isdecimal() else wanted.lower() in device.describe().lower()


def open_webgpu(artifact: Artifact, threads: int | None, *, graphics: Graphics = ANY_ADAPTER) -> Engine:
    """Load on WebGPU. Where the CPU is allowed and takes over, it is reported on stderr. Raises EngineError."""
    switch_telemetry_off()
    try:
        chosen = find_device(graphics.adapter)
    except EngineError as error:
        if not graphics.allow_cpu or graphics.adapter is not None:
            raise
        print(f"phi-edge: on the CPU: {error}", file=sys.stderr)
        return open_onnx(artifact, threads)
    check_adapter(chosen.handle, chosen.describe(), artifact.manifest)
    print(f"phi-edge: WebGPU on {chosen.describe()}", file=sys.stderr)
    return WebGpuEngine(load_session(model_file(artifact), threads, device=chosen.handle), artifact, chosen)


def find_device(wanted: str | None = None) -> GpuDevice:
    """This machine's adapter to compute on; see choose_device. Raises EngineError."""
    if wanted is not None:
        os.environ.setdefault(ALLOW_SOFTWARE, "1")
    return choose_device(list_devices(), wanted)


def list_devices() -> list[GpuDevice]:
    """The adapters that the plugin offers. Raises EngineError where it is not installed."""
    import onnxruntime

    _register()
    return [
        GpuDevice(
            vendor=each.device.vendor or VENDORS.get(each.device.vendor_id, ""),
            number=each.device.device_id,
            discrete=each.device.metadata.get("Discrete") == "1",
            software=each.device.type == onnxruntime.OrtHardwareDeviceType.CPU,
            handle=each,
        )
        for each in onnxruntime.get_ep_devices()
        if each.ep_name == PROVIDER
    ]


@functools.cache
def _register() -> None:
    """Once in a process."""
    try:
        import onnxruntime
        import onnxruntime_ep_webgpu
    except ModuleNotFoundError as error:
        raise EngineError(f"WebGPU needs {error.name}", fix="pip install 'phi-edge[webgpu]'") from error
    try:
        onnxruntime.register_execution_provider_library("webgpu", onnxruntime_ep_webgpu.get_library_path())
    except Exception as error:  # the library's errors have no common class
        raise EngineError(
            f"onnxruntime {onnxruntime.__version__} cannot load onnxruntime-ep-webgpu: {error}"
        ) from error


class WebGpuEngine(DeviceCacheEngine):
    """See Engine. Its attention wants past and present in one buffer."""

    def __init__(self, session: Any, artifact: Artifact, device: GpuDevice) -> None:
        super().__init__(session, artifact, f"WebGPU on {device.describe()}")
        if device.software:
            self.max_forward_tokens = SOFTWARE_FORWARD_TOKENS

    def _allocate(self, shape: tuple[int, ...], kind: Any) -> Any:
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "gpu", 0, vendor_id=GENERIC_VENDOR)
