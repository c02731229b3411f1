"""Weights that are read when they are asked for: a model larger than memory, by the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor


class WeightsOnDemand(Mapping[str, Tensor]):
    """Tensors by name, each read, in float32, whenever it is asked for."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)
