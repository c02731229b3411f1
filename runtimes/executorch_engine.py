"""ExecuTorch through its Python bindings: forward(tokens int64 [1, S], start_pos int64 [1]) -> logits [1, vocab].

The KV cache lives inside the program; it is overwritten from start_pos on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from export.artifact import Artifact
from runtimes.errors import EngineError

if TYPE_CHECKING:
    from runtimes.engine import Engine, Logits


def open_executorch(artifact: Artifact, threads: int | None) -> Engine:
    """Load the artifact's one .pte file. Raises EngineError."""
    try:
        # Registers llama::update_cache and llama::custom_sdpa; imported after the bindings, they miss custom_sdpa.
        import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401  # isort: skip
        from executorch.extension.pybindings import portable_lib
    except ModuleNotFoundError as error:
        raise EngineError(
            f"this artifact needs executorch ({error.name} is not installed): pip install 'phi-edge[executorch]'"
        ) from error
    names = [name for name in artifact.manifest.files if name.endswith(".pte")]
    if len(names) != 1:
        raise EngineError(f"{artifact.folder}: has {len(names)} .pte files, expected one; export it again")
    path = artifact.path(names[0])
    if threads is not None:
        # "Unsafe" while a model runs on the pool: it is one per process. No model of ours runs while one is opened.
        portable_lib._unsafe_reset_threadpool(threads)
    try:
        module = portable_lib._load_for_executorch(str(path))
        limits = {name: int(module.run_method(name, ())[0]) for name in ("get_max_seq_len", "get_max_context_len")}
    except RuntimeError as error:
        raise EngineError(f"ExecuTorch cannot load {path}: {error}; export it again") from error
    return ExecutorchEngine(module, artifact, limits["get_max_seq_len"])


class ExecutorchEngine:
    """See Engine."""

    def __init__(self, module: Any, artifact: Artifact, max_forward_tokens: int) -> None:
        import torch

        self.context_tokens = artifact.manifest.context_tokens
        self.vocab_size = artifact.manifest.model.vocab_size
        self.switch_tokens = artifact.manifest.rope.switch_tokens
        self.max_forward_tokens = max_forward_tokens
        self._module = module
        self._start = torch.zeros(1, dtype=torch.int64)
        self._one = torch.zeros((1, 1), dtype=torch.int64)

    def forward(self, ids: Sequence[int], start: int) -> Logits:
        """See Engine.forward."""
        import torch

        self._start[0] = start
        if len(ids) == 1:
            tokens = self._one
            tokens[0, 0] = ids[0]
        else:
            tokens = torch.tensor([ids], dtype=torch.int64)
        try:
            outputs = self._module.forward((tokens, self._start))
        except RuntimeError as error:
            raise EngineError(f"ExecuTorch failed at position {start}: {error}") from error
        logits: Logits = outputs[0].reshape(-1).numpy()
        return logits

    def close(self) -> None:
        """Free the program and its KV cache."""
        self._module = None
