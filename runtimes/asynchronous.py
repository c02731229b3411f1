"""A stream of events for `async for`: it runs in a thread of its own, because an engine's call blocks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator

from runtimes.api import Event


async def in_thread(
    generate: Callable[[], Generator[Event, None, None]], cancel: Callable[[], None]
) -> AsyncGenerator[Event, None]:
    """The events of `generate`, which is called in the thread; its exceptions are raised here. When the iterator is
    closed early, `cancel` is called and the thread's end awaited, so that the runtime is free for the next request."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
    closed = threading.Event()

    def put(item: Event | BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def work() -> None:
        try:
            with contextlib.closing(generate()) as events:
                for event in events:
                    put(event)
                    if closed.is_set():
                        return
        except BaseException as error:
            put(error)
        finally:
            put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        if thread.is_alive():
            cancel()
        await asyncio.shield(asyncio.to_thread(thread.join))
