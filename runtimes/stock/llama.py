"""llama.cpp with a GGUF file of anybody's: what its header says, and our token loop over llama.cpp's forward."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.artifact import MANIFEST
from runtimes.errors import EngineError
from runtimes.loop.loop import TokenLoop
from runtimes.stock.model import MOST_TOKENS, StockModel

_U32, _STRING, _ARRAY = 4, 8, 9  # gguf_type
_SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator")  # as the format spells it
# llama_ftype: what most of the matrices are stored as.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 25: "IQ4_NL", 30: "IQ4_XS",
    32: "BF16",
}  # fmt: skip


class _Init(ctypes.Structure):
    """gguf_init_params."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "gguf_find_key": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_char_p]),
    "gguf_free": (None, [ctypes.c_void_p]),
    "gguf_get_arr_n": (ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_get_kv_type": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_get_val_str": (ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_get_val_u32": (ctypes.c_uint32, [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_init_from_file": (ctypes.c_void_p, [ctypes.c_char_p, _Init]),
}


def look_at_gguf(path: Path) -> StockModel | None:
    """None for what is no .gguf file, or one of our artifacts'. Raises EngineError for one that cannot be read."""
    if path.suffix.lower() != ".gguf" or not path.is_file() or (path.parent / MANIFEST).is_file():
        return None
    with _header(path) as header:
        kind = header.text("general.architecture")
        vocab_size = header.length("tokenizer.ggml.tokens") or header.number(f"{kind}.vocab_size")
        if vocab_size is None:
            raise EngineError(f"{path}: has no vocabulary and does not say how large it is; convert it again")
        if not 1 <= vocab_size <= MOST_TOKENS:
            raise EngineError(f"{path}: has a vocabulary of {vocab_size}, at most {MOST_TOKENS} are taken")
        file_type = header.number("general.file_type")
        special = (header.number(f"tokenizer.ggml.{name}_token_id") for name in _SPECIAL)
        return StockModel(
            path=path,
            engine="llama.cpp",
            files=[path],
            context_tokens=header.number(f"{kind}.context_length"),
            vocab_size=vocab_size,
            special_ids=frozenset(id_ for id_ in special if id_ is not None),
            model_type=kind,
            scheme=None if file_type is None else FILE_TYPES.get(file_type, f"file type {file_type}"),
        )


def open_gguf(path: Path, context_tokens: int, threads: int | None) -> TokenLoop:
    """The model with a context of so many tokens. Raises EngineError."""
    from runtimes.engines.llama_engine import open_file  # here, because it shows which library a process has loaded

    return TokenLoop(open_file(path, context_tokens, threads))


class _Header:
    """The keys of an open file; None for one that it lacks, or that has another type."""

    def __init__(self, library: Any, handle: int) -> None:
        self._library, self._handle = library, handle

    def text(self, key: str) -> str | None:
        place = self._find(key, _STRING)
        return None if place is None else self._library.gguf_get_val_str(self._handle, place).decode(errors="replace")

    def number(self, key: str) -> int | None:
        place = self._find(key, _U32)
        return None if place is None else int(self._library.gguf_get_val_u32(self._handle, place))

    def length(self, key: str) -> int | None:
        place = self._find(key, _ARRAY)
        return None if place is None else int(self._library.gguf_get_arr_n(self._handle, place))

    def _find(self, key: str, kind: int) -> int | None:
        place: int = self._library.gguf_find_key(self._handle, key.encode())
        # Another type would end the process.
        return None if place < 0 or self._library.gguf_get_kv_type(self._handle, place) != kind else place


@contextlib.contextmanager
def _header(path: Path) -> Iterator[_Header]:
    from runtimes.engines.llama_library import last_errors, load_llama

    library = load_llama()
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    handle = library.gguf_init_from_file(os.fsencode(path), _Init(no_alloc=True, ctx=None))
    if not handle:
        raise EngineError(f"{path}: cannot be read as a GGUF file: {last_errors()}")
    try:
        yield _Header(library, handle)
    finally:
        library.gguf_free(handle)
