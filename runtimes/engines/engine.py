"""One loaded model in this process. It has no text, sampling or sessions: ids in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from export.artifact import Artifact

    Logits = npt.NDArray[np.float32]


class Engine(Protocol):
    """A model with one KV cache of `context_tokens` positions."""

    @property
    def context_tokens(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def switch_tokens(self) -> int | None:
        """With long rope: a sequence longer than this takes the long factors from its first token on, so one that
        crosses it must be prefilled again from position 0. None without long rope."""
        ...

    @property
    def max_forward_tokens(self) -> int:
        """The most ids that one forward takes."""
        ...

    @property
    def continues(self) -> bool:
        """Whether several ids may follow what is cached. If not, they are taken at position 0 only, all at once."""
        ...

    @property
    def accelerator(self) -> str | None:
        """The name of the device that it computes on, for messages; None for the CPU."""
        ...

    def forward(self, ids: Sequence[int], start: int, *, long: bool = False) -> Logits:
        """Write the keys and values of `ids` at positions start.. and return the last one's logits, float32 [vocab].

        `long`: the sequence that these ids are a piece of is longer than `switch_tokens`. A call that reaches beyond
        the switch is long by itself.

        Positions below `start` must have been written; those beyond the ids are forgotten. The logits may be
        overwritten by the next call. Raises EngineError.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class AdaptableEngine(Engine, Protocol):
    """An engine that may have LoRA adapters beside its weights."""

    @property
    def adapters(self) -> Sequence[str]:
        """Their names."""
        ...

    def use_adapter(self, name: str | None) -> None:
        """From the next forward on, which begins at position 0. None: the weights alone. Raises EngineError."""
        ...


@runtime_checkable
class CheckingEngine(Engine, Protocol):
    """An engine that can give the logits after each of several ids, so that one forward checks guesses."""

    @property
    def most_rows(self) -> int:
        """After so many of a forward's last ids. 1 where the artifact is of an export that gave the last one's only."""
        ...

    def forward_rows(self, ids: Sequence[int], start: int, rows: int, *, long: bool = False) -> Logits:
        """As `forward`, with the logits after each of the last `rows` ids, [rows, vocab]."""
        ...


@runtime_checkable
class WindowEngine(Engine, Protocol):
    """An engine that may keep only the last tokens, and so cannot go back to every position."""

    def can_resume(self, start: int, end: int) -> bool:
        """Whether a forward may begin at `start`, where the furthest that others wrote is `end`."""
        ...


def adapter_names(artifact: Artifact) -> tuple[str, ...]:
    """The LoRA adapters that an artifact has beside its weights."""
    return tuple(adapter.name for adapter in artifact.manifest.source.side_adapters)


@runtime_checkable
class OpenCache(Protocol):
    """An engine whose KV cache can be read and written, to keep a session in a file."""

    def read_cache(self, count: int) -> list[npt.NDArray[Any]]:
        """What it has of the first `count` positions' keys and values in each layer, [kv_heads, rows, head_dim]; views.
        With a sliding window the rows may be the last tokens' alone."""
        ...

    def write_cache(self, parts: Sequence[npt.NDArray[Any]], count: int) -> None:
        """The inverse. Raises RequestError for other numbers, shapes or types than `read_cache` gives."""
        ...


# Which providers of a manifest compute on a graphics adapter, and their names for people.
ACCELERATED = {"dml": "DirectML", "webgpu": "WebGPU", "cuda": "CUDA"}


@dataclass(frozen=True, kw_only=True)
class Graphics:
    """Where an artifact for a graphics adapter runs."""

    adapter: str | None = None  # its number, LUID (HIGH:LOW) or a part of its name; None: the one with most memory
    allow_cpu: bool = False  # the CPU takes over where there is no adapter


ANY_ADAPTER = Graphics()
# Opens an artifact on a number of threads (None: all cores this process may use).
EngineOpener = Callable[["Artifact", int | None], Engine]
