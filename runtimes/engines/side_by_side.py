"""Several tokens of one sequence in one forward, each with the very logits that a forward of its own would give.

GroupQueryAttention has one kernel for a forward of one token and another for several, which rounds otherwise; through
int8 activations that grows to tenths of a logit. So the tokens are given as a batch of sequences of one token each,
whose KV caches are one: the same memory, mirrored (runtimes/system/pages.py). The operator writes all new keys and
values first, and then each sequence attends up to its own position, by the kernel for one token.

Whether the rest of the graph gives each row the same bits in a batch depends on the processor and the artifact's
blocks, so it is tried, not assumed.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtimes.errors import EngineError
from runtimes.system.pages import Mirrored

if TYPE_CHECKING:
    import numpy.typing as npt

    from runtimes.engines.engine import Logits

CPU = ("cpu", 0)  # the place of a buffer that is bound
TRIED_TOKENS = 5  # whose logits alone and together are compared


def open_side_by_side(
    session: Any, like: npt.NDArray[Any], names: Sequence[str], adapter: Mapping[str, Any], logits: Logits
) -> SideBySide | None:
    """It, with empty caches; None where the system has no such memory, or where a token together with others has other
    logits than alone."""
    import numpy as np

    try:
        beside = SideBySide(session, like, names, logits)
        for name, value in adapter.items():
            beside.binding.bind_ortvalue_input(name, value)
        ids = range(TRIED_TOKENS)
        alone = [beside.forward([id], id)[0].copy() for id in ids]
        together = beside.forward(ids[1:], 1)
    except (OSError, EngineError):
        return None
    return beside if all(np.array_equal(one, row) for one, row in zip(alone[1:], together, strict=True)) else None


class SideBySide:
    """A session's binding for a batch."""

    def __init__(self, session: Any, like: npt.NDArray[Any], names: Sequence[str], logits: Logits) -> None:
        """`like` one of the KV caches, [1, kv_heads, positions, head_dim]; `names` of all, after `past_key_values.` and
        `present.`; `logits` [rows, vocab] for as many tokens at once. Raises OSError."""
        import numpy as np

        self._session, self._names, self._logits = session, names, logits
        self.binding = session.io_binding()
        shape = whole_pages(like.shape, like.itemsize)
        self._mirrored = [Mirrored(math.prod(shape) * like.itemsize, len(logits)) for _ in names]
        self.caches = [mirrored.array(shape, like.dtype) for mirrored in self._mirrored]
        self._ids = np.zeros((len(logits), 1), np.int64)
        self._last_row = np.full(1, -1, np.int64)  # token_logits_from: after each sequence's last token
        self._tokens = 0

    def take_over(self, caches: list[npt.NDArray[Any]], filled: int) -> None:
        """Copy the first `filled` rows. Each cache is let go before the next is copied, so that memory never has
        all of them twice."""
        for place, cache in enumerate(self.caches):
            cache[:, :, :filled] = caches[place][:, :, :filled]
            caches[place] = cache

    def forward(self, ids: Sequence[int], start: int) -> Logits:
        """The logits after each of `ids`, which begin at position `start`. The next call overwrites them."""
        import numpy as np

        count, end = len(ids), start + len(ids)
        if count != self._tokens:
            self._bind(count)
        self._ids[:count, 0] = ids
        mask = np.ones((count, end), np.int64)
        mask[:, start:] = np.tri(count, dtype=np.int64)
        self.binding.bind_input("attention_mask", *CPU, mask.dtype, mask.shape, mask.ctypes.data)
        try:
            self._session.run_with_iobinding(self.binding)
        except Exception as error:  # the library's errors have no common class
            raise EngineError(f"onnxruntime failed at position {start}: {error}") from error
        return self._logits[:count]

    def _bind(self, count: int) -> None:
        self._tokens = count
        for name, cache, mirrored in zip(self._names, self.caches, self._mirrored, strict=True):
            shape = (count, *cache.shape[1:])
            self.binding.bind_input(f"past_key_values.{name}", *CPU, cache.dtype, shape, mirrored.address)
            self.binding.bind_output(f"present.{name}", *CPU, cache.dtype, shape, mirrored.address)
        self.binding.bind_input("input_ids", *CPU, self._ids.dtype, (count, 1), self._ids.ctypes.data)
        last = self._last_row
        self.binding.bind_input("token_logits_from", *CPU, last.dtype, last.shape, last.ctypes.data)
        shape = (count, 1, self._logits.shape[1])
        self.binding.bind_output("token_logits", *CPU, self._logits.dtype, shape, self._logits.ctypes.data)


def whole_pages(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """A cache's shape with so many more positions that it fills whole pages."""
    one, heads, positions, head_dim = shape
    step = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, heads * head_dim * itemsize)
    return one, heads, -(-positions // step) * step, head_dim
