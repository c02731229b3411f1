"""onnxruntime-genai with a folder of its builder's, Olive's or anybody's: its own generator, greedy, on the CPU or what
genai_config.json names."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from export.inspect.names import is_foreign, models_of
from export.strict import read_json
from runtimes.api import Finish, Usage
from runtimes.errors import EngineError, UnsupportedError
from runtimes.loop.tokens import NewToken, TokenRecord, TokenRequest, TokensDone, check_request
from runtimes.stock.model import MOST_TOKENS, StockModel, files_of
from runtimes.system.telemetry import switch_telemetry_off

CONFIG = "genai_config.json"


def look_at_genai(path: Path) -> StockModel | None:
    """None for what has no ONNX model. Raises EngineError for a folder that genai cannot run."""
    models = models_of(path) if is_foreign(path) else []
    if not models or models[0].suffix != ".onnx":
        return None
    folder = models[0].parent
    if not (folder / CONFIG).is_file():
        raise EngineError(f"{path}: has {models[0].name} and no {CONFIG}, which onnxruntime-genai needs to run it")
    model = _model(folder)
    kind, context = model.get("type"), model.get("context_length")
    special = [model.get(f"{name}_token_id") for name in ("bos", "eos", "pad")]
    ids = [id_ for each in special for id_ in (each if isinstance(each, list) else [each])]
    return StockModel(
        path=path,
        engine="onnxruntime-genai",
        files=files_of(path),
        context_tokens=context if type(context) is int else None,
        vocab_size=_vocab_size(model, folder),
        special_ids=frozenset(id_ for id_ in ids if type(id_) is int),
        model_type=kind if isinstance(kind, str) else None,
    )


def open_genai(path: Path, context_tokens: int, threads: int | None) -> GenaiTokens:
    """Load the folder. Raises EngineError."""
    switch_telemetry_off()
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise EngineError(
            f"{path}: is onnxruntime-genai's, which cannot be imported ({error}): pip install onnxruntime-genai"
        ) from error
    folder = models_of(path)[0].parent
    try:
        config = onnxruntime_genai.Config(str(folder))
        if threads is not None:
            options = {"session_options": {"intra_op_num_threads": threads}}
            config.overlay(json.dumps({"model": {"decoder": options}}))
        model = onnxruntime_genai.Model(config)
    except Exception as error:  # the bindings raise nothing narrower
        raise EngineError(f"onnxruntime-genai cannot load {folder}: {error}") from error
    return GenaiTokens(onnxruntime_genai, model, context_tokens, _vocab_size(_model(folder), folder))


class GenaiTokens:
    """See StockTokens. A request has a generator of its own, as large as prompt and answer."""

    accelerator: str | None = None

    def __init__(self, library: Any, model: Any, context_tokens: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._library, self._model, self._context_tokens = library, model, context_tokens
        self._cancelled = False

    def stream(self, request: TokenRequest) -> Generator[TokenRecord, None, None]:
        """See TokenSource.stream. Of a request only the length is served: no sampling, no stop ids."""
        accepted = time.perf_counter()
        check_request(request, self._context_tokens, self.vocab_size)
        if request != TokenRequest(ids=request.ids, max_new_tokens=request.max_new_tokens):
            raise UnsupportedError("a stock engine is only measured: a prompt, and greedy tokens without a stop")
        self._cancelled = False
        return self._stream(request, accepted)

    def cancel(self) -> None:
        """See TokenSource.cancel."""
        self._cancelled = True

    def forget(self) -> None:
        """Nothing is kept between two requests."""

    def close(self) -> None:
        """Free the model."""
        self._model = None

    def _stream(self, request: TokenRequest, accepted: float) -> Generator[TokenRecord, None, None]:
        import numpy as np

        prompt, completion, error = len(request.ids), 0, None
        finish: Finish = "length"
        prefill_s = None
        try:
            parameters = self._library.GeneratorParams(self._model)
            total = min(self._context_tokens, prompt + request.max_new_tokens)
            parameters.set_search_options(max_length=total, min_length=total, do_sample=False)
            generator = self._library.Generator(self._model, parameters)
            began = time.perf_counter()
            generator.append_tokens(np.array(request.ids, np.int32))
            prefill_s = time.perf_counter() - began
            while completion < total - prompt:
                if self._cancelled:
                    finish = "cancelled"
                    break
                generator.generate_next_token()
                at_s = time.perf_counter() - accepted
                completion += 1
                yield NewToken(int(generator.get_next_tokens()[0]), at_s)
        except (RuntimeError, MemoryError, ValueError) as failure:
            finish, error = "error", f"onnxruntime-genai failed: {failure}"
        yield TokensDone(
            finish=finish,
            usage=Usage(prompt=prompt, reused=0, prefilled=prompt, completion=completion),
            prefill_s=prefill_s,
            total_s=time.perf_counter() - accepted,
            error=error,
        )


def _model(folder: Path) -> Mapping[str, Any]:
    content = read_json(folder / CONFIG, EngineError, "export it again")
    model = content.get("model") if isinstance(content, dict) else None
    return model if isinstance(model, dict) else {}


def _vocab_size(model: Mapping[str, Any], folder: Path) -> int:
    size = model.get("vocab_size")
    if type(size) is not int or not 1 <= size <= MOST_TOKENS:
        raise EngineError(
            f"{folder / CONFIG}: model.vocab_size is {size!r:.40}; give the number of tokens, at most {MOST_TOKENS}"
        )
    return size
