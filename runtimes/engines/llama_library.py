"""llama.cpp's C functions, out of PyPI's xllamacpp, whose extension module exports them.

That package has built wheels, which llama-cpp-python has not. Its own Python interface is a server's and gives no
logits, so these functions are called by ctypes.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

from runtimes.errors import EngineError

_ERROR = 4  # of the levels of ggml's log
_KEPT_LINES = 3


class Parameters(ctypes.Structure):
    """llama_model_params or llama_context_params with their defaults.

    Longer than either, which C's rules for large structures allow: most of it is handed on and never looked into, so
    that another version's fields do no harm.
    """

    _fields_ = (("first", ctypes.c_uint32 * 4), ("rest", ctypes.c_byte * 1008))


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_INT, _POINTER = ctypes.c_int32, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_batch_init": (Batch, [_INT, _INT, _INT]),
    "llama_batch_free": (None, [Batch]),
    "llama_context_default_params": (Parameters, []),
    "llama_decode": (_INT, [_POINTER, Batch]),
    "llama_free": (None, [_POINTER]),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [_POINTER]),
    "llama_get_memory": (_POINTER, [_POINTER]),
    "llama_init_from_model": (_POINTER, [_POINTER, Parameters]),
    "llama_log_set": (None, [_LOG, _POINTER]),
    "llama_memory_clear": (None, [_POINTER, ctypes.c_bool]),
    "llama_memory_seq_rm": (ctypes.c_bool, [_POINTER, _INT, _INT, _INT]),
    "llama_model_default_params": (Parameters, []),
    "llama_model_free": (None, [_POINTER]),
    "llama_model_get_vocab": (_POINTER, [_POINTER]),
    "llama_model_load_from_file": (_POINTER, [ctypes.c_char_p, Parameters]),
    "llama_set_n_threads": (None, [_POINTER, _INT, _INT]),
    "llama_tokenize": (
        _INT,
        [_POINTER, ctypes.c_char_p, _INT, ctypes.POINTER(_INT), _INT, ctypes.c_bool, ctypes.c_bool],
    ),
    "llama_vocab_is_eog": (ctypes.c_bool, [_POINTER, _INT]),
    "llama_vocab_n_tokens": (_INT, [_POINTER]),
}
_errors: list[str] = []


def _keep_errors(level: int, text: bytes, _: None) -> None:
    if level == _ERROR:
        _errors.append(text.decode(errors="replace").strip())
        del _errors[:-_KEPT_LINES]


_LOGGER = _LOG(_keep_errors)  # kept: the library calls it as long as it is loaded


def last_errors() -> str:
    """What llama.cpp logged last as an error, for a message; and forget it."""
    text = " | ".join(_errors)
    _errors.clear()
    return text or "it gave no reason"


@functools.cache
def load_llama() -> Any:
    """The library, loaded once. Raises EngineError.

    Its threads meet some hundred times a token, and by OpenMP's default each spins until the others are there. Where
    other programs use the cores too, a token of the tiny model took 90 ms so, and 2 ms with threads that sleep. OpenMP
    reads the variable once, while it loads.
    """
    spec = importlib.util.find_spec("xllamacpp")
    files = list(Path(spec.origin).parent.glob("xllamacpp.*")) if spec and spec.origin else []
    file = next((file for file in files if file.suffix in (".so", ".pyd")), None)
    if file is None:
        raise EngineError(
            "this artifact needs xllamacpp, which has llama.cpp and is not installed: pip install 'phi-edge[gguf]'; "
            "or give model.gguf to llama-server, llama-cli or Ollama"
        )
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        library = ctypes.CDLL(str(file))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise EngineError(
            f"{file}: cannot be used as llama.cpp's library ({error}); install another xllamacpp"
        ) from error
    library.llama_log_set(_LOGGER, None)
    return library
