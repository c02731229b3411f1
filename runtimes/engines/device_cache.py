"""ONNX Runtime on an accelerator: the engine of onnx_engine.py with its KV cache in the device's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runtimes.engines.onnx_engine import OnnxEngine

if TYPE_CHECKING:
    import numpy.typing as npt

    from export.artifact import Artifact
    from runtimes.engines.engine import Logits


class DeviceCacheEngine(OnnxEngine):
    """See Engine. Past and present are one buffer for each of a layer's keys and values, which `_allocate` makes."""

    _on_device: list[Any]  # OrtValues

    def __init__(self, session: Any, artifact: Artifact, accelerator: str) -> None:
        super().__init__(session, artifact)
        self.accelerator = accelerator

    def forward_rows(self, ids: Sequence[int], start: int, rows: int, *, long: bool = False) -> Logits:
        """See CheckingEngine.forward_rows."""
        self._bound_length = 0  # an input is copied to the device when it is bound: ids of the same length, too
        return super().forward_rows(ids, start, rows, long=long)

    def read_cache(self, count: int) -> list[npt.NDArray[Any]]:
        """See OpenCache.read_cache."""
        return [value.numpy()[0, :, :count] for value in self._on_device]

    def write_cache(self, parts: Sequence[npt.NDArray[Any]], count: int) -> None:
        """See OpenCache.write_cache."""
        self._kv = [value.numpy() for value in self._on_device]
        super().write_cache(parts, count)
        for value, buffer in zip(self._on_device, self._kv, strict=True):
            value.update_inplace(buffer)
        self._kv = []

    def close(self) -> None:
        """Free the session and the KV cache."""
        super().close()
        self._on_device = []

    def _allocate(self, shape: tuple[int, ...], kind: Any) -> Any:
        """An OrtValue of zeroes in the device's memory."""
        raise NotImplementedError

    def _bind_cache(self, shape: tuple[int, ...], tails: Sequence[str]) -> None:
        import numpy as np

        self._kv = []
        self._on_device = [self._allocate(shape, np.dtype(self._kv_type).type) for _ in tails]
        for tail, value in zip(tails, self._on_device, strict=True):
            self._binding.bind_ortvalue_input(f"past_key_values.{tail}", value)
            self._binding.bind_ortvalue_output(f"present.{tail}", value)
