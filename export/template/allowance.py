"""How much time and memory a rendering has left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Collection, Iterable
from typing import TypeVar

T = TypeVar("T")

RENDER_S = 5.0  # of a processor's time; the longest conversation takes a template a tenth of a second
MOST_PARTS = 10_000_000  # of one value; the longest conversation has a million characters
MOST_BYTES = 1 << 29  # of all that a rendering makes: a text that grows message by message is made anew each time
ITEM_PARTS = 8  # an item of a list takes as much as so many characters
_CONTAINERS: tuple[type[Collection[object]], ...] = (
    list,
    tuple,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
    set,
    frozenset,
)


class Allowance(threading.local):
    """What a rendering may still take, in each thread. `start` comes before it.

    What a template makes is counted, not what it frees, so that it can never have more than MOST_BYTES.
    """

    _end_s = 0.0
    _left_bytes = MOST_BYTES

    def start(self) -> None:
        """A rendering begins."""
        self._end_s = time.thread_time() + RENDER_S
        self._left_bytes = MOST_BYTES

    def check_time(self) -> None:
        """Raises TimeoutError once the time has passed."""
        if time.thread_time() > self._end_s:
            raise TimeoutError(f"it takes longer than {RENDER_S:g} s")

    def made(self, value: T) -> T:
        """The value, which the template has just made. Raises OverflowError where that is too much."""
        check_parts(parts(value))
        self._left_bytes -= _bytes(value)
        if self._left_bytes < 0:
            raise OverflowError(f"it makes more than {MOST_BYTES >> 20} MiB of texts and lists")
        return value


def check_parts(count: int) -> None:
    """Raises OverflowError where one value is too large."""
    if count > MOST_PARTS:
        raise OverflowError(f"it makes a text, a list or a number of more than {MOST_PARTS} parts")


def parts(value: object) -> int:
    """How large a value is with all that it contains: characters of texts, bits of numbers, items of lists.

    Not exact beyond MOST_PARTS: a list that contains another twice, and so on, has more than can be counted.
    """
    count = 0
    waiting = [value]
    while waiting and count <= MOST_PARTS:
        item = waiting.pop()
        if isinstance(item, str | bytes):
            count += len(item)
        elif isinstance(item, int):
            count += item.bit_length()
        elif isinstance(item, dict):
            count += ITEM_PARTS * len(item)
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, _CONTAINERS):
            count += ITEM_PARTS * len(item)
            waiting += item
        else:
            count += 1
    return count


def _bytes(value: object) -> int:
    """What a new value takes: itself, and its items, which may be as new."""
    items: Iterable[object] = ()
    if isinstance(value, dict):
        items = value.values()
    elif isinstance(value, _CONTAINERS):
        items = value
    return sys.getsizeof(value) + sum(map(sys.getsizeof, items))
