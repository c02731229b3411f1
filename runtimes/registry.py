"""From an artifact to a runtime: the one table of engines, and the functions that use it."""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from export.artifact import Artifact, Format, open_artifact
from runtimes.engines.engine import ANY_ADAPTER, Engine, EngineOpener, Graphics
from runtimes.errors import EngineError, RequestError
from runtimes.loop.grammar import Grammars
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import TokenSource, is_whole
from runtimes.system.cores import MOST_THREADS
from runtimes.system.paths import path_fault

if TYPE_CHECKING:
    from runtimes.text.runtime import TextRuntime


def _onnx(artifact: Artifact, threads: int | None) -> Engine:
    opener = _accelerated(artifact)
    if opener is not None:
        return opener(artifact, threads, graphics=ANY_ADAPTER)
    from runtimes.engines.onnx_engine import open_onnx

    return open_onnx(artifact, threads)


class AdapterOpener(Protocol):
    """Opens an artifact on a graphics adapter."""

    def __call__(self, artifact: Artifact, threads: int | None, *, graphics: Graphics) -> Engine: ...


def _accelerated(artifact: Artifact) -> AdapterOpener | None:
    """What opens an artifact that was exported for a graphics adapter; None where the CPU runs it here."""
    provider = artifact.manifest.engine.get("provider")
    if provider == "cuda":
        from runtimes.engines.cuda import open_cuda

        return open_cuda
    if provider == "webgpu" and artifact.manifest.target != "web":  # which a browser runs
        from runtimes.engines.webgpu import open_webgpu

        return open_webgpu
    if provider == "dml" and sys.platform == "win32":
        from runtimes.engines.directml import open_windows

        return open_windows
    return None


def _executorch(artifact: Artifact, threads: int | None) -> Engine:
    from runtimes.engines.executorch_engine import open_executorch

    return open_executorch(artifact, threads)


def _gguf(artifact: Artifact, threads: int | None) -> Engine:
    from runtimes.engines.llama_engine import open_llama

    return open_llama(artifact, threads)


# Each opener imports its library only when it is called.
ENGINES: dict[Format, EngineOpener] = {"onnx": _onnx, "executorch": _executorch, "gguf": _gguf}


def load_library(format: str) -> None:
    """Load a format's engine's library before there is an artifact. What is missing is reported when one is opened."""
    _import_numpy()
    with contextlib.suppress(EngineError):
        if format == "onnx":
            from runtimes.engines.onnx_engine import load_library as load_onnx

            load_onnx()
        elif format == "executorch":
            from runtimes.engines.executorch_engine import load_library as load_executorch

            load_executorch()


def _import_numpy() -> None:
    """Before an engine's library, whose own import of it hides a Ctrl-C."""
    with contextlib.suppress(ModuleNotFoundError):  # the engine says what is missing
        import numpy  # noqa: F401


def open_runtime(
    artifact: Artifact | Path | str,
    *,
    threads: int | None = None,
    engine: EngineOpener | None = None,
    graphics: Graphics = ANY_ADAPTER,
) -> TextRuntime:
    """Open an artifact for text in, text out, in this process.

    `threads` None means all cores this process may use; `engine` None the one for the artifact's format; `graphics`
    is for artifacts that run on DirectML, WebGPU or CUDA.
    Raises RuntimesError and, for a folder that is not an artifact, export's ArtifactError.
    """
    if not isinstance(artifact, Artifact):
        artifact = open_artifact(Path(artifact))
    return text_runtime(artifact, open_tokens(artifact, threads=threads, engine=engine, graphics=graphics))


def text_runtime(artifact: Artifact, source: TokenSource) -> TextRuntime:
    """Text in, text out over any source of this artifact's tokens, here or on a device (devices.drivers.table)."""
    from runtimes.text.runtime import TextRuntime
    from runtimes.text.suggested import suggested_sampling
    from runtimes.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(artifact.folder, artifact.manifest.files)
    return TextRuntime(source, tokenizer, artifact.manifest, suggested_sampling(artifact))


def open_tokens(
    artifact: Artifact,
    *,
    threads: int | None = None,
    engine: EngineOpener | None = None,
    graphics: Graphics = ANY_ADAPTER,
) -> TokenLoop:
    """Open an artifact for ids in, ids out: what an agent on a device serves. Raises RuntimesError."""
    _import_numpy()
    if threads is not None and not (is_whole(threads) and 1 <= threads <= MOST_THREADS):
        raise RequestError(f"threads is {threads!r:.60}; allowed: 1 to {MOST_THREADS}, or leave it out for all cores")
    if (fault := path_fault(artifact.folder)) is not None:
        raise EngineError(fault)
    opener = engine or (
        ENGINES[artifact.manifest.format] if graphics == ANY_ADAPTER else _on_adapter(artifact, graphics)
    )
    return TokenLoop(opener(artifact, threads), grammars=Grammars(artifact))


def _on_adapter(artifact: Artifact, graphics: Graphics) -> EngineOpener:
    opener = _accelerated(artifact)
    if opener is not None:
        return functools.partial(opener, graphics=graphics)
    if artifact.manifest.engine.get("provider") == "dml":
        raise RequestError(
            "--adapter and --allow-cpu work only on Windows with DirectML; here the CPU runs this artifact: remove them"
        )
    raise RequestError(
        f"--adapter and --allow-cpu work only with artifacts that were exported for DirectML, WebGPU or CUDA, and this "
        f"one is for {artifact.manifest.target}: remove them"
    )
