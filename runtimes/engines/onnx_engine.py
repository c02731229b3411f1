"""ONNX Runtime on the CPU: one session, buffers bound once, the KV cache written in place.

The graph: input_ids int64 [1, S], attention_mask int64 [1, start + S] (one for DirectML: position_ids int64 [1, S] too,
and perhaps seqlens_k and total_sequence_length int32 [1] in the mask's place), past_key_values.N.key/value
[1, kv_heads, rows, head_dim] -> logits [1, 1, vocab] of the last token, present.N.key/value. Past and present are
the same memory (GroupQueryAttention's shared buffer); the mask's length says how much of it is filled. Where there is
an output token_logits [1, rows, vocab], the input token_logits_from int64 [1] says after which tokens: -rows. Of a long
prompt's first pieces long rope learns by zeros at the mask's end or, for CUDA, by sequence_tokens int64 [1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifact import ADAPTER_SUFFIX, Artifact
from runtimes.engines.engine import adapter_names
from runtimes.engines.onnx_graph import cache_rows, check_graph, empty_values, logits_type, read_values
from runtimes.engines.side_by_side import CPU, SideBySide, open_side_by_side, whole_pages
from runtimes.errors import EngineError, RequestError
from runtimes.system.cores import available_cores
from runtimes.system.mapped import released
from runtimes.system.pages import fresh_pages, grants
from runtimes.system.telemetry import switch_telemetry_off

if TYPE_CHECKING:
    import numpy.typing as npt

    from runtimes.engines.engine import Engine, Logits

_ON_CPU = ("CPUExecutionProvider",)
_MOST_ROWS = 16  # of token_logits: a buffer of a few MB
# Of one forward with an int8 cache, which is there to save memory: with twice as many, Phi-3-mini-4k took 0.2 GB more
# and 4 % less time for a prompt.
_MOST_TOKENS_INT8 = 256


def open_onnx(artifact: Artifact, threads: int | None) -> Engine:
    """Load the artifact's one .onnx file. Raises EngineError."""
    load_library()
    return OnnxEngine(load_session(model_file(artifact), threads), artifact)


def load_library() -> None:
    """Import onnxruntime. Raises EngineError."""
    switch_telemetry_off()
    try:
        import onnxruntime  # noqa: F401 - whether it is there
    except ModuleNotFoundError as error:
        raise EngineError(
            "this artifact needs onnxruntime, which is not installed: pip install 'phi-edge[onnx]'"
        ) from error


def model_file(artifact: Artifact) -> Path:
    """The artifact's graph. Raises EngineError."""
    names = [name for name in artifact.manifest.files if name.endswith(".onnx")]
    if len(names) != 1:
        raise EngineError(f"{artifact.folder}: has {len(names)} .onnx files, expected one; export it again")
    return artifact.path(names[0])


class OnnxEngine:
    """See Engine. `forward` returns a view of one buffer that the next call overwrites."""

    _kv: list[npt.NDArray[Any]]

    def __init__(self, session: Any, artifact: Artifact) -> None:
        import numpy as np

        model = artifact.manifest.model
        self.context_tokens = artifact.manifest.context_tokens
        self.vocab_size = model.vocab_size
        self.switch_tokens = artifact.manifest.rope.switch_tokens
        self.max_forward_tokens = self.context_tokens
        self.continues = True
        self.accelerator: str | None = None
        self.adapters = adapter_names(artifact)
        self._artifact, self._session = artifact, session
        self._kv_type = check_graph(session, model)
        if self._kv_type == "int8":
            self.max_forward_tokens = min(_MOST_TOKENS_INT8, self.context_tokens)
        self._binding = session.io_binding()
        self._run_options: Any = None  # onnxruntime's own
        self._values: dict[str, Any] = {}  # the adapter's
        self._rows = cache_rows(artifact.manifest)
        shape = (1, model.kv_heads, self._rows.capacity, model.head_dim)
        self._tails = [f"{layer}.{part}" for layer in range(model.layers) for part in ("key", "value")]
        self._bind_cache(shape, self._tails)
        several = any(item.name == "token_logits" for item in session.get_outputs())
        self.most_rows = _MOST_ROWS if several else 1
        self._logits = np.zeros((self.most_rows, model.vocab_size), logits_type(session))
        self._rows_from = np.zeros(1, np.int64)
        self._bind_rows(1)
        self._mask = np.ones(self.context_tokens, np.int64)
        self._ids = np.zeros(self.context_tokens, np.int64)
        self._bound_length = 0
        # A graph for DirectML has positions of its own, and may have the lengths as numbers in the mask's place.
        names = {item.name for item in (*session.get_inputs(), *session.get_overridable_initializers())}
        self._positions = np.zeros(self.context_tokens, np.int64) if "position_ids" in names else None
        self._lengths = np.zeros(2, np.int32) if "seqlens_k" in names else None
        self._sequence_tokens = np.zeros(1, np.int64) if "sequence_tokens" in names else None
        if self._lengths is not None:
            self._bind_input("seqlens_k", self._lengths[:1], (1,))
            self._bind_input("total_sequence_length", self._lengths[1:], (1,))
        # How several tokens get the logits that each would get alone; None until it was tried, and where it cannot be.
        self._beside: SideBySide | None = None
        plain = self.switch_tokens is None and not names & {"position_ids", "seqlens_k"}
        # A window's rows are moved when they are all full, so that more of them would be another layout.
        fills_pages = self._rows.capacity == self.context_tokens or whole_pages(shape, self._kv[0].itemsize) == shape
        self._may_try = plain and several and bool(self._kv) and fills_pages

    def forward(self, ids: Sequence[int], start: int, *, long: bool = False) -> Logits:
        """See Engine.forward."""
        row: Logits = self.forward_rows(ids, start, 1, long=long)[0]
        return row

    def forward_rows(self, ids: Sequence[int], start: int, rows: int, *, long: bool = False) -> Logits:
        """See CheckingEngine.forward_rows."""
        import numpy as np

        if 1 < rows == len(ids) and (exact := self._rows_side_by_side(ids, start)) is not None:
            return exact
        length, end = len(ids), start + len(ids)
        if end > self.context_tokens:
            raise EngineError(f"position {end} is beyond the context of {self.context_tokens} tokens")
        self._ids[:length] = ids
        if length != self._bound_length:
            self._bind_input("input_ids", self._ids, (1, length))
            self._bound_length = length
        if rows != -self._rows_from[0]:
            self._bind_rows(rows)
        switch, width = self.switch_tokens, end
        early = switch if long and switch is not None and end <= switch else 0
        if self._positions is not None:
            # The long factors' rows lie below the short ones'; a call past the switch goes there by itself.
            self._positions[:length] = np.arange(start + early, end + early)
            self._bind_input("position_ids", self._positions, (1, length))
        elif self._sequence_tokens is not None:
            self._sequence_tokens[0] = early + 1 if early else 0
            self._bind_input("sequence_tokens", self._sequence_tokens, (1,))
        elif early:
            # The graph takes the long factors where the mask is wider than the switch; its ones are what is in.
            width = early + 1
            self._mask[end:width] = 0
        if self._lengths is not None:
            self._lengths[:] = end - 1, end
        else:
            self._bind_input("attention_mask", self._mask, (1, width))
        try:
            self._session.run_with_iobinding(self._binding, self._run_options)
        except Exception as error:  # the library's errors have no common class
            raise EngineError(f"onnxruntime failed at position {start}: {error}") from error
        finally:
            self._mask[end:width] = 1
        logits = self._logits[:rows]
        return logits if logits.dtype == np.float32 else logits.astype(np.float32)

    def use_adapter(self, name: str | None) -> None:
        """See AdaptableEngine."""
        values = empty_values(self._session)
        if name is not None:
            values |= read_values(self._artifact.path(name + ADAPTER_SUFFIX), values)
        self._values = values  # what is bound must live
        for binding in (self._binding, *([self._beside.binding] if self._beside else [])):
            for key, value in values.items():
                binding.bind_ortvalue_input(key, value)

    def read_cache(self, count: int) -> list[npt.NDArray[Any]]:
        """See OpenCache.read_cache."""
        return [buffer[0, :, : self._rows.filled(count)] for buffer in self._kv]

    def write_cache(self, parts: Sequence[npt.NDArray[Any]], count: int) -> None:
        """See OpenCache.write_cache."""
        rows = self._rows.filled(count)
        fitting = [(buffer[0, :, :rows].shape, buffer.dtype) for buffer in self._kv]
        if not 0 < count <= self.context_tokens or [(part.shape, part.dtype) for part in parts] != fitting:
            raise RequestError("the saved session's cache has other shapes than this artifact's; save it again")
        for buffer, part in zip(self._kv, parts, strict=True):
            buffer[0, :, :rows] = part

    def can_resume(self, start: int, end: int) -> bool:
        """See WindowEngine."""
        return self._rows.can_resume(start, end)

    def close(self) -> None:
        """Free the session and the KV cache."""
        self._binding = self._session = self._beside = None
        self._kv = []

    def _bind_cache(self, shape: tuple[int, ...], tails: Sequence[str]) -> None:
        """Make the buffers of the KV cache, each for past and present."""
        self._use_cache(_make_cache(shape, self._kv_type, len(tails)))

    def _use_cache(self, buffers: list[npt.NDArray[Any]]) -> None:
        self._kv = buffers
        for tail, buffer in zip(self._tails, buffers, strict=True):
            self._bind_input(f"past_key_values.{tail}", buffer, buffer.shape)
            self._bind_output(f"present.{tail}", buffer, buffer.shape)

    def _rows_side_by_side(self, ids: Sequence[int], start: int) -> Logits | None:
        """The logits after each of `ids`, bit for bit those of a forward each; None where that is not to be had."""
        if not self._rows.can_resume(start, start + len(ids)):
            return None  # each sequence of the batch would move the rows of their one cache
        if self._may_try:
            self._may_try = False
            self._beside = open_side_by_side(self._session, self._kv[0], self._tails, self._values, self._logits)
            if self._beside is not None:
                self._beside.take_over(self._kv, self._rows.filled(start))
                self._use_cache(self._beside.caches)
        return None if self._beside is None else self._beside.forward(ids, start)

    def _bind_rows(self, rows: int) -> None:
        self._rows_from[0] = -rows
        name = "logits"
        if self.most_rows > 1:
            name = "token_logits"
            self._bind_input("token_logits_from", self._rows_from, (1,))
        self._bind_output(name, self._logits, (1, rows, self.vocab_size))

    def _bind_input(self, name: str, buffer: npt.NDArray[Any], shape: Sequence[int]) -> None:
        self._binding.bind_input(name, *CPU, buffer.dtype, shape, buffer.ctypes.data)

    def _bind_output(self, name: str, buffer: npt.NDArray[Any], shape: Sequence[int]) -> None:
        self._binding.bind_output(name, *CPU, buffer.dtype, shape, buffer.ctypes.data)


def _make_cache(shape: tuple[int, ...], dtype: npt.DTypeLike, count: int) -> list[npt.NDArray[Any]]:
    """`count` buffers of the KV cache, [1, kv_heads, tokens, head_dim] each. Raises EngineError where the system
    refuses so much, with a context that it would grant."""
    import numpy as np

    try:
        return [fresh_pages(shape, dtype) for _ in range(count)]
    except (OSError, OverflowError, ValueError, MemoryError) as error:
        _, heads, tokens, head_dim = shape
        token_bytes = count * heads * head_dim * np.dtype(dtype).itemsize
        fitting = tokens // 2
        while fitting >= 256 and not grants(fitting * token_bytes):
            fitting //= 2
        advice = f"export it again with --context {fitting} or less" if fitting >= 256 else "take a smaller model"
        raise EngineError(
            f"the system refused the KV cache: {tokens * token_bytes / 1e9:.1f} GB for {tokens} tokens; "
            f"{advice}, or give the process more memory (ulimit -v?)"
        ) from error


def load_session(path: Path, threads: int | None, *, device: Any = None, providers: Sequence[Any] = _ON_CPU) -> Any:
    """A session on these providers, or on a device of a plugin. Raises EngineError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores() if threads is None else threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Every token has a new mask length, and a memory pattern would be planned and kept for each of them.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    if device is not None:
        options.add_provider_for_devices([device], {})
    chosen = None if device is not None else list(providers)
    try:
        # Most weights are copied, packed for the processor or to the adapter, and their file's pages not read again.
        with released(path):
            # Its fallback prints to stdout, and only tries the same once more.
            return onnxruntime.InferenceSession(str(path), options, providers=chosen, enable_fallback=False)
    except UnicodeDecodeError as error:
        said = error.object.decode("utf-8", "backslashreplace")
        raise EngineError(f"onnxruntime {onnxruntime.__version__} cannot load {path}: {said}") from error
    except Exception as error:  # the library's errors have no common class
        said = str(error) or "it gives no reason"  # of one that is not UTF-8 nothing is left in Python 3.11.2
        raise EngineError(f"onnxruntime {onnxruntime.__version__} cannot load {path}: {said}") from error
