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
from typing import TYPE_CHECKING, Any

from export.artifact import Artifact
from runtimes.engines.engine import ANY_ADAPTER, Engine, Graphics
from runtimes.engines.onnx_engine import OnnxEngine, load_session, model_file, open_onnx
from runtimes.errors import EngineError
from runtimes.system.telemetry import switch_telemetry_off

if TYPE_CHECKING:
    import numpy.typing as npt

    from runtimes.engines.engine import Logits

PROVIDER = "WebGpuExecutionProvider"
ALLOW_SOFTWARE = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"  # of the plugin, read when it is registered
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
    if graphics.adapter is not None:
        os.environ.setdefault(ALLOW_SOFTWARE, "1")
    try:
        chosen = choose_device(list_devices(), graphics.adapter)
    except EngineError as error:
        if not graphics.allow_cpu or graphics.adapter is not None:
            raise
        print(f"phi-edge: on the CPU: {error}", file=sys.stderr)
        return open_onnx(artifact, threads)
    print(f"phi-edge: WebGPU on {chosen.describe()}", file=sys.stderr)
    return WebGpuEngine(load_session(model_file(artifact), threads, device=chosen.handle), artifact, chosen)


def list_devices() -> list[GpuDevice]:
    """The adapters that the plugin offers. Raises EngineError where it is not installed."""
    import onnxruntime

    _register()
    return [
        GpuDevice(
            vendor=each.device.vendor,
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


class WebGpuEngine(OnnxEngine):
    """See Engine. The KV cache is in the adapter's memory: its attention wants past and present in one buffer."""

    _on_device: list[Any]  # OrtValues

    def __init__(self, session: Any, artifact: Artifact, device: GpuDevice) -> None:
        super().__init__(session, artifact)
        self.accelerator = f"WebGPU on {device.describe()}"
        if device.software:
            self.max_forward_tokens = SOFTWARE_FORWARD_TOKENS

    def forward_rows(self, ids: Sequence[int], start: int, rows: int, *, long: bool = False) -> Logits:
        """See CheckingEngine.forward_rows."""
        self._bound_length = 0  # an input is copied to the adapter when it is bound: ids of the same length, too
        return super().forward_rows(ids, start, rows, long=long)

    def read_cache(self, count: int) -> list[npt.NDArray[Any]]:
        """See OpenCache.read_cache."""
        return [value.numpy()[0, :, :count] for value in self._on_device]

    def write_cache(self, parts: Sequence[npt.NDArray[Any]]) -> None:
        """See OpenCache.write_cache."""
        self._kv = [value.numpy() for value in self._on_device]
        super().write_cache(parts)
        for value, buffer in zip(self._on_device, self._kv, strict=True):
            value.update_inplace(buffer)
        self._kv = []

    def close(self) -> None:
        """Free the session and the KV cache."""
        super().close()
        self._on_device = []

    def _bind_cache(self, shape: tuple[int, ...], tails: Sequence[str]) -> None:
        import numpy as np
        import onnxruntime

        kind = np.dtype(self._kv_type).type
        self._kv = []
        self._on_device = [
            onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "gpu", 0, vendor_id=GENERIC_VENDOR)
            for _ in tails
        ]
        for tail, value in zip(tails, self._on_device, strict=True):
            self._binding.bind_ortvalue_input(f"past_key_values.{tail}", value)
            self._binding.bind_ortvalue_output(f"present.{tail}", value)
