"""Attention over a cache, of all tokens of a call at once or of one token after the other.

custom_sdpa rounds a token otherwise when others come with it: its matrix products have another kernel for one row, and
its exp another for the last few keys. Int8 activations make tenths of a logit of that. The linear layers give each row
the same bits however many there are. So in a call that checks guesses, whose answer must be plain decoding's, each
token attends alone, and all that reads weights still takes the tokens at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan


def attend(
    singly: Tensor, query: Tensor, keys: Tensor, values: Tensor, position: Tensor, scale: float | None, *mask: Tensor
) -> Tensor:
    """custom_sdpa of [1, tokens, heads, head_dim]; `singly`, a bool, says in which way.

    `position`: the first token's, int64 [1]. Each token sees the keys up to its own, or with a mask [tokens, keys]
    what its row leaves of all.
    """

    def at_once(query: Tensor, keys: Tensor, values: Tensor, position: Tensor, *mask: Tensor) -> Tensor:
        return sdpa(query, keys, values, position, scale, *mask)

    def one_by_one(query: Tensor, keys: Tensor, values: Tensor, position: Tensor, *mask: Tensor) -> Tensor:
        def one(position: Tensor, token: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            query, *row = token
            attended = sdpa(query[None, None], keys, values, position, scale, *(part[None] for part in row))
            return position + 1, attended[0, 0]

        attended: Tensor = scan(one, position.clone(), (query[0], *mask))[1]
        return attended[None]

    attended: Tensor = torch.cond(singly, one_by_one, at_once, (query, keys, values, position, *mask))
    return attended


def sdpa(
    query: Tensor, keys: Tensor, values: Tensor, position: Tensor, scale: float | None, mask: Tensor | None = None
) -> Tensor:
    start = position[-1].item()
    torch._check(start >= 0)  # type: ignore[no-untyped-call]
    attended: Tensor = torch.ops.llama.custom_sdpa(query, keys, values, start, mask, 0.0, mask is None, scale)
    return attended
