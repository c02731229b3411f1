"""The page that is the agent, as both of its browsers have it: ours, which Playwright drives, and a phone's."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from playwright.async_api import Page, async_playwright

BINDING = "phiEdgeWrite"  # what the page calls with a line
Write = Callable[[str], None]


class AgentPage(Protocol):
    """A page that is open."""

    ended: asyncio.Event  # set when the page, or its browser, has gone

    async def go(self, url: str, write: Write) -> None:
        """To the agent's page, whose lines `write` is given."""

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression. Raises RequestError where the page has gone."""


class OwnPage:
    """See AgentPage: of a browser that was started for it."""

    def __init__(self, page: Page) -> None:
        self.ended = asyncio.Event()
        self._page = page
        page.on("console", lambda message: log(message.text))
        page.on("crash", lambda _: self.ended.set())
        page.on("close", lambda _: self.ended.set())

    async def go(self, url: str, write: Write) -> None:
        """See AgentPage.go."""
        await self._page.expose_binding(BINDING, lambda _, line: write(line))
        await self._page.goto(url, wait_until="commit")

    async def evaluate(self, expression: str) -> Any:
        """See AgentPage.evaluate."""
        return await self._page.evaluate(expression)


@contextlib.asynccontextmanager
async def own_page(program: str, options: list[str], *, headless: bool) -> AsyncIterator[AgentPage]:
    """A page in a browser whose profile is new, and removed at the end."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=options, headless=headless)
        yield OwnPage(await browser.new_page())
        await browser.close()


def log(text: str) -> None:
    """What the page writes to its console, for people."""
    print(f"browser: {text}", file=sys.stderr)
