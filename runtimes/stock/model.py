"""A model that another tool exported, as a benchmark sees it: which engine runs it, its files, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.inspect.names import models_of

EngineName = Literal["llama.cpp", "onnxruntime-genai", "executorch"]
MOST_TOKENS = 1 << 24  # of a vocabulary, as in our manifests: a list of it is made


@dataclass(frozen=True, kw_only=True)
class StockModel:
    """What a row of runtimes.stock.table read, without loading the weights. None where the files do not say it."""

    path: Path  # as the user named it
    engine: EngineName
    files: Sequence[Path]  # all that belongs to it: its size and its digest
    context_tokens: int | None  # the longest sequence that it takes
    vocab_size: int | None
    special_ids: frozenset[int]  # of which no prompt is made
    model_type: str | None = None
    scheme: str | None = None
    tokenizer: Path | None = None  # where the engine takes text alone

    @property
    def name(self) -> str:
        """The folder's; of a file without its suffix."""
        path = self.path.resolve()
        return path.name if path.is_dir() else path.stem


def files_of(path: Path) -> list[Path]:
    """All files of a model's folder; a model that is one file is that. Raises OSError."""
    if path.is_file():
        return [path]
    models = models_of(path)
    folder = models[0].parent if models else path
    return sorted(file for file in folder.iterdir() if file.is_file())
