"""llama.cpp on the CPU: a GGUF file, mapped, with one sequence in its KV cache.

It chooses long rope's factors by the size of its context, not by the length of the sequence. So there is a context of
one size or of the other, and the loop above prefills again where a sequence crosses from one to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifact import Artifact
from runtimes.engines.llama_library import last_errors, load_llama
from runtimes.errors import EngineError
from runtimes.system.cores import available_cores

if TYPE_CHECKING:
    from runtimes.engines.engine import Engine, Logits

MOST_TOKENS = 512  # of one call: llama.cpp computes no more at once by itself
MOST_ROWS = 16
# The first fields of llama_context_params: n_ctx, n_batch, n_ubatch, n_seq_max. Their defaults say that they are these.
DEFAULTS = [512, 2048, 512, 1]


def open_llama(artifact: Artifact, threads: int | None) -> Engine:
    """Load the artifact's one .gguf file. Raises EngineError."""
    names = [name for name in artifact.manifest.files if name.endswith(".gguf")]
    if len(names) != 1:
        raise EngineError(f"{artifact.folder}: has {len(names)} .gguf files, expected one; export it again")
    manifest = artifact.manifest
    engine = open_file(artifact.path(names[0]), manifest.context_tokens, threads, manifest.rope.switch_tokens)
    if engine.vocab_size != manifest.model.vocab_size:
        engine.close()
        raise EngineError(
            f"{artifact.folder}: {names[0]} has {engine.vocab_size} tokens, the manifest says "
            f"{manifest.model.vocab_size}; export it again"
        )
    return engine


def open_file(path: Path, context_tokens: int, threads: int | None, switch_tokens: int | None = None) -> LlamaEngine:
    """Load a GGUF file. `switch_tokens`: see Engine; without it the context decides. Raises EngineError."""
    library = load_llama()
    model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
    if not model:
        raise EngineError(f"llama.cpp cannot load {path}: {last_errors()}")
    threads = available_cores() if threads is None else threads
    return LlamaEngine(library, model, context_tokens, switch_tokens, threads)


class LlamaEngine:
    """See Engine."""

    def __init__(self, library: Any, model: int, context_tokens: int, switch_tokens: int | None, threads: int) -> None:
        self.context_tokens = context_tokens
        self.vocab_size: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self.switch_tokens = switch_tokens
        self.max_forward_tokens = min(MOST_TOKENS, self.context_tokens)
        self.most_rows = MOST_ROWS
        self.continues = True
        self.accelerator: str | None = None
        self._library, self._model, self._threads = library, model, threads
        self._batch = library.llama_batch_init(MOST_TOKENS, 0, 1)
        self._context, self._long = 0, False
        self._use_context(long=False)

    def forward(self, ids: Sequence[int], start: int, *, long: bool = False) -> Logits:
        """See Engine.forward."""
        row: Logits = self.forward_rows(ids, start, 1, long=long)[0]
        return row

    def forward_rows(self, ids: Sequence[int], start: int, rows: int, *, long: bool = False) -> Logits:
        """See CheckingEngine.forward_rows."""
        import numpy as np

        library, batch, end = self._library, self._batch, start + len(ids)
        self._use_context(long=self.switch_tokens is not None and (long or end > self.switch_tokens))
        memory = library.llama_get_memory(self._context)
        if not library.llama_memory_seq_rm(memory, 0, start, -1):
            raise EngineError(f"llama.cpp cannot forget what is cached from position {start} on")
        batch.n_tokens = len(ids)
        for place, id in enumerate(ids):
            batch.token[place], batch.pos[place] = id, start + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = place >= len(ids) - rows
        if status := library.llama_decode(self._context, batch):
            raise EngineError(f"llama.cpp failed at position {start} with status {status}: {last_errors()}")
        logits: Logits = np.ctypeslib.as_array(library.llama_get_logits(self._context), (rows, self.vocab_size))
        return logits

    def close(self) -> None:
        """Free the model and its KV cache."""
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_batch_free(self._batch)
            self._library.llama_model_free(self._model)
        self._context = self._model = 0

    def _use_context(self, *, long: bool) -> None:
        """Have a context whose size says whether long rope's factors are the long ones; empty where it is a new one."""
        if self._context and self._long == long:
            return
        library = self._library
        parameters = library.llama_context_default_params()
        if list(parameters.first) != DEFAULTS:
            raise EngineError("this xllamacpp has other settings than the one known here; pip install 'phi-edge[gguf]'")
        if self._context:
            library.llama_free(self._context)
        short = min(self.context_tokens, self.switch_tokens or self.context_tokens)
        parameters.first[0] = self.context_tokens if long else short
        self._context, self._long = library.llama_init_from_model(self._model, parameters), long
        if not self._context:
            raise EngineError(f"llama.cpp makes no context of {parameters.first[0]} tokens: {last_errors()}")
        library.llama_set_n_threads(self._context, self._threads, self._threads)
