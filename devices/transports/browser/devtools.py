"""One page of somebody's browser, through Chrome's DevTools protocol: their other pages are left alone.

Playwright would take over all of them, and a page that it cannot take over keeps it waiting.
Source: https://chromedevtools.github.io/devtools-protocol/ (its HTTP endpoints, Runtime, Page, Storage).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
import urllib.request
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from devices.transports.browser.page import BINDING, Write, log
from runtimes.errors import RequestError

START_S = 30.0  # for the browser
ANSWER_S = 60.0  # for one call
GONE = "the page or its browser has gone"


class DevtoolsPage:
    """See AgentPage."""

    def __init__(self, socket: ClientConnection) -> None:
        self.ended = asyncio.Event()
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._write: Write = log
        self._listening = asyncio.create_task(self._listen())

    async def go(self, url: str, write: Write) -> None:
        """See AgentPage.go."""
        self._write = write
        await self.call("Runtime.enable")
        await self.call("Runtime.addBinding", name=BINDING)
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """See AgentPage.evaluate."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RequestError(f"the page failed: {answer['exceptionDetails'].get('text')}")
        return answer["result"].get("value")

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One method's result. Raises RequestError."""
        number = next(self._numbers)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
            return await asyncio.wait_for(answer, ANSWER_S)
        except ConnectionClosed as error:
            raise RequestError(GONE) from error
        except TimeoutError as error:
            raise RequestError(f"the browser does not answer {method} within {ANSWER_S:.0f} s") from error
        finally:
            del self._waiting[number]

    async def _listen(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for text in self._socket:
                self._take(json.loads(text))
        self.ended.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(RequestError(GONE))

    def _take(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if (answer := self._waiting.get(message.get("id", 0))) is not None and not answer.done():
            if "error" in message:
                answer.set_exception(RequestError(f"the browser refused: {message['error'].get('message')}"))
            else:
                answer.set_result(message["result"])
        elif message.get("method") == "Runtime.bindingCalled" and parameters["name"] == BINDING:
            self._write(parameters["payload"])
        elif message.get("method") == "Runtime.consoleAPICalled":
            log(" ".join(str(each.get("value", each.get("description", ""))) for each in parameters["args"]))
        elif message.get("method") == "Inspector.targetCrashed":
            self.ended.set()


@contextlib.asynccontextmanager
async def devtools_page(devtools: str, site: str) -> AsyncIterator[DevtoolsPage]:
    """A new page, which is closed at the end; what the site's pages keep is removed before and after. A page that was
    left open, because its agent was killed, is closed first. Raises RequestError."""
    await _answering(devtools)
    for page in await _ask(f"{devtools}/json/list"):
        if page["url"].startswith(f"{site}/"):
            await _ask(f"{devtools}/json/close/{page['id']}")
    target = await _ask(f"{devtools}/json/new?about:blank", "PUT")
    try:
        async with await _connect(f"ws://{urlsplit(devtools).netloc}/devtools/page/{target['id']}") as socket:
            page = DevtoolsPage(socket)
            kept = {"origin": site, "storageTypes": "all"}
            await page.call("Storage.clearDataForOrigin", **kept)
            try:
                yield page
            finally:
                with contextlib.suppress(RequestError):  # after a page that has gone, the next one removes it
                    await page.call("Storage.clearDataForOrigin", **kept)
    finally:
        with contextlib.suppress(RequestError):
            await _ask(f"{devtools}/json/close/{target['id']}")


async def _connect(address: str) -> ClientConnection:
    try:
        return await connect(address, max_size=None, ping_interval=None)
    except (OSError, WebSocketException) as error:
        raise RequestError(f"the browser's DevTools refuse their page: {error}") from error


async def _answering(devtools: str) -> None:
    until_s = time.monotonic() + START_S
    while True:
        try:
            await _ask(f"{devtools}/json/version")
            return
        except RequestError:
            if time.monotonic() > until_s:
                raise
        await asyncio.sleep(0.25)


async def _ask(url: str, method: str = "GET") -> Any:
    """The answer of one of DevTools' HTTP endpoints: JSON, or text. Raises RequestError."""

    def ask() -> Any:
        request = urllib.request.Request(url, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=ANSWER_S) as answer:
            text = answer.read().decode()
        return json.loads(text) if text.startswith(("{", "[")) else text

    try:
        return await asyncio.to_thread(ask)
    except (OSError, ValueError) as error:
        raise RequestError(f"the browser's DevTools do not answer {urlsplit(url).path}: {error}") from error
