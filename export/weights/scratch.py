"""Memory that a worker uses again for every chunk of weights."""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class Scratch(threading.local):
    """Each thread's own buffers, by name. What `take` gave is overwritten once the same name is taken again.

    The system clears every fresh page it gives, which costs twice as much as quantising what is written there.
    """

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of this shape with anything in it."""
        count = torch.Size(shape).numel()
        held = self.held.get(name)
        if held is None or held.numel() < count or held.dtype != dtype:
            held = self.held[name] = torch.empty(count, dtype=dtype)
        return held[:count].view(shape)
