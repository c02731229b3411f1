"""What ends an agent when its own threads cannot: a host that is silent, and one that has hung up while they wait.

A connection that was cut may not report it; and a thread that writes to a host which does not read would wait for ever.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable

EXIT_SILENCE = 3
STUCK_S = 5.0  # after the end of stdin, without a line read or written
LOOK_S = 1.0
_STDIN, _STDERR = 0, 2


def start_watch(silence_s: float | None, last_line_s: Callable[[], float], moved: Callable[[], int]) -> None:
    """Watch from a thread of its own. `last_line_s` is when the last line came in (perf_counter), `moved` how many
    lines were read and written; with `silence_s` None a host may be silent."""
    threading.Thread(target=_watch, args=(silence_s, last_line_s, moved), name="watch", daemon=True).start()


def _watch(silence_s: float | None, last_line_s: Callable[[], float], moved: Callable[[], int]) -> None:
    moved_before, since_s = -1, 0.0
    while True:
        now_s = time.perf_counter()
        left_s = LOOK_S if silence_s is None else last_line_s() + silence_s - now_s
        if left_s <= 0:
            _say(f"no line came in for {silence_s:.0f} s: the host is gone\n")
            os._exit(EXIT_SILENCE)
        if not _hung_up() or moved() != moved_before:
            moved_before, since_s = moved(), now_s
        elif now_s - since_s > STUCK_S:
            os._exit(0)
        time.sleep(min(LOOK_S, left_s))


def _hung_up() -> bool:
    """Whether the other end of stdin is closed, even where lines of it are still unread."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    gone = select.POLLHUP | getattr(select, "POLLRDHUP", 0)
    poll.register(_STDIN, gone)
    return any(events & gone for _, events in poll.poll(0))


def _say(text: str) -> None:
    # Nobody may read stderr either.
    with contextlib.suppress(OSError):
        if sys.platform != "win32":
            os.set_blocking(_STDERR, False)
        os.write(_STDERR, text.encode())
