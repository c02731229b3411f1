"""ExecuTorch through its C++ bindings: forward(tokens int64 [1, S], start_pos int64 [1]) -> logits [rows, vocab].

The KV cache lives inside the program; it is overwritten from start_pos on. With a sliding window it is a ring
(export/to_executorch/ring.py). What start_pos says besides is in export/to_executorch/runner.py. The program file is
mapped, not read.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifact import Artifact
from runtimes.errors import EngineError
from runtimes.system.cores import available_cores

if TYPE_CHECKING:
    from runtimes.engines.engine import Engine, Logits

# Kernels outside the bindings: the KV cache and attention, and quantised embeddings.
_KERNELS = {
    "llama::custom_sdpa.out": ("executorch.extension.llm", "custom_ops/*custom_ops_aot_lib.*"),
    "quantized_decomposed::embedding_4bit.out": ("executorch.kernels", "quantized/*quantized_ops_aot_lib.*"),
}

_OPEN: weakref.WeakSet[ExecutorchEngine] = weakref.WeakSet()  # those of this process that are not closed


def open_executorch(artifact: Artifact, threads: int | None) -> Engine:
    """Load the artifact's one .pte file. Raises EngineError.

    ExecuTorch has one thread pool per process, so `threads` applies to all of its models: another number is refused
    while one is open, since its program would go on with the old pool's memory.
    """
    library = load_library()
    names = [name for name in artifact.manifest.files if name.endswith(".pte")]
    if len(names) != 1:
        raise EngineError(f"{artifact.folder}: has {len(names)} .pte files, expected one; export it again")
    path = artifact.path(names[0])
    check_header(path)
    wanted = available_cores() if threads is None else threads
    with _quiet() as last_lines:
        threads_now = library._threadpool_get_thread_count()
        if threads_now != wanted and _OPEN:
            raise EngineError(
                f"another ExecuTorch artifact is open in this process with {threads_now} threads, and all share one "
                f"pool; close it first, or open this one with {threads_now} threads, too"
            )
        try:
            if threads_now != wanted:
                library._unsafe_reset_threadpool(wanted)
            # Without this a damaged program ends the process in the middle of a call.
            verification = library.Verification.InternalConsistency
            program = library._load_program(str(path), program_verification=verification)
            limit = int(program.load_method("get_max_seq_len").call(())[0])
            # Packs the weights: loading, not part of the first prompt's time.
            method = program.load_method("forward")
        except Exception as error:  # the bindings raise nothing narrower
            # The exception has a number; the reason (a missing kernel, say) is only in the log.
            raise EngineError(f"ExecuTorch cannot load {path}: {error}; its last lines: {last_lines()}") from error
    return ExecutorchEngine(program, method, artifact, limit)


class ExecutorchEngine:
    """See Engine."""

    def __init__(self, program: Any, method: Any, artifact: Artifact, max_forward_tokens: int) -> None:
        import torch

        self.context_tokens = artifact.manifest.context_tokens
        self.vocab_size = artifact.manifest.model.vocab_size
        self.switch_tokens = artifact.manifest.rope.switch_tokens
        self.max_forward_tokens = max_forward_tokens
        self.most_rows = int(artifact.manifest.engine.get("logits_rows", 1))
        self.continues = True
        self._kept_tokens = artifact.manifest.memory.kept_tokens
        self._window_tokens = artifact.manifest.window_tokens or 0
        self.accelerator = None
        self._program, self._method = program, method
        _OPEN.add(self)
        self._start = torch.zeros(1, dtype=torch.int64)
        self._one = torch.zeros((1, 1), dtype=torch.int64)
        # numpy views of the same memory: an element written through torch takes 4 us, through numpy 0.1.
        self._start_value, self._one_value = self._start.numpy(), self._one.numpy()

    def forward(self, ids: Sequence[int], start: int, *, long: bool = False) -> Logits:
        """See Engine.forward."""
        row: Logits = self.forward_rows(ids, start, 1, long=long)[0]
        return row

    def forward_rows(self, ids: Sequence[int], start: int, rows: int, *, long: bool = False) -> Logits:
        """See CheckingEngine.forward_rows."""
        import torch

        # A position that is larger by the context's length makes the program use the long factors; by twice that
        # length, it gives the logits of one token more.
        periods = 2 * (rows - 1) + (1 if long and self.switch_tokens is not None else 0)
        self._start_value[0] = start + periods * self.context_tokens
        if len(ids) == 1:
            self._one_value[0, 0] = ids[0]
            tokens = self._one
        else:
            tokens = torch.tensor([ids], dtype=torch.int64)
        try:
            outputs = self._method.call((tokens, self._start))
        except Exception as error:  # the bindings raise nothing narrower
            raise EngineError(f"ExecuTorch failed at position {start}: {error}") from error
        logits: Logits = outputs[0].numpy().reshape(rows, -1)
        return logits

    def can_resume(self, start: int, end: int) -> bool:
        """See WindowEngine."""
        if self._kept_tokens is None or start == 0 or end <= self._kept_tokens:
            return True
        return end - start <= self._kept_tokens - self._window_tokens + 1

    def close(self) -> None:
        """Free the program and its KV cache."""
        self._program = self._method = None
        _OPEN.discard(self)


def check_header(path: Path) -> None:
    """Refuse a file that is no whole program: ExecuTorch's own library would abort the process. Raises EngineError.

    A flatbuffer's offset and identifier, then the extended header: "eh00", its length, the sizes of the program, of
    what is before the segments, and of the segments (executorch/schema/extended_header.cpp).
    """
    with path.open("rb") as file:
        head = file.read(40)
    program, start, segments = (int.from_bytes(head[at : at + 8], "little") for at in (16, 24, 32))
    size = path.stat().st_size
    if head[4:8] != b"ET12" or head[8:12] != b"eh00" or program > size or start + segments > size:
        raise EngineError(f"{path}: is no whole ExecuTorch program; export it again")


def load_library() -> Any:
    """ExecuTorch's C++ bindings, with the kernels that our programs use registered.

    Its public Python modules for the same (`portable_lib`, `custom_ops`) also import the exporter and torch's
    compiler: 4 s and 290 MB where this takes 2 s and 190 MB, all of it torch.
    """
    try:
        torch = _import_torch()
        from executorch.extension.pybindings import _portable_lib
    except ModuleNotFoundError as error:
        raise EngineError(
            f"this artifact needs executorch ({error.name} is not installed): pip install 'phi-edge[executorch]' "
            "(on ARM Linux as docs/raspberry-pi.md says)"
        ) from error
    for kernel, (package, pattern) in _KERNELS.items():
        if kernel in _portable_lib._get_operator_names():
            continue
        spec = importlib.util.find_spec(package)
        folders = list(spec.submodule_search_locations or ()) if spec is not None else []
        found = [path for folder in folders for path in Path(folder).glob(pattern)]
        if len(found) != 1:
            raise EngineError(
                f"the installed executorch has no library with {kernel}; install the wheel: "
                "pip install 'phi-edge[executorch]'"
            )
        torch.ops.load_library(found[0])
    return _portable_lib


def _import_torch() -> Any:
    """torch with one OpenMP thread, where this is its first import.

    The attention kernel multiplies with torch's BLAS inside ExecuTorch's own threads. With OpenMP's default each of
    those starts a team of spinning threads of its own: on a busy machine a forward of 2 tokens took 2,300 ms, not 1.
    OpenMP reads the variable once, while it loads; nothing else can set this for threads that exist later.
    """
    if sys.modules.get("torch") is not None:
        return sys.modules["torch"]
    kept = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        import torch

        torch.get_num_threads()
    finally:
        if kept is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = kept
    return torch


@contextlib.contextmanager
def _quiet() -> Iterator[Callable[[], str]]:
    """Keep the C++ log off the user's terminal while a model loads; yields a function that gives its last lines.

    Even a load without a fault logs a complaint that this is not an Android phone.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace", buffering=1) as log:

        def last_lines() -> str:
            log.seek(0)
            return " | ".join([line for line in log.read().splitlines() if "cpuinfo_utils" not in line][-3:])

        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        watched = faulthandler.is_enabled()
        if not watched:  # else a crash in the library would end the process without a word
            faulthandler.enable(kept)
        try:
            # Some of the log goes to the file descriptor, some to Python's sys.stderr, which may be another file.
            with contextlib.redirect_stderr(log):
                yield last_lines
        finally:
            if not watched:
                faulthandler.disable()
            os.dup2(kept, 2)
            os.close(kept)
