"""`python -m devices.transports.browser ARTIFACT`: an agent whose model runs in a browser, here or on a phone.

It serves the web bundle's page files and the artifact on a free port of 127.0.0.1, opens agent.html in a Chromium that
Playwright drives, and passes the lines of the agent protocol on between stdin, stdout and the page. The browser's
profile is new each time, and removed at the end; in a phone's, which is its owner's, what the page has kept is removed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import http.server
import json
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from playwright.async_api import Browser, ConsoleMessage, Error, Page, Playwright, async_playwright

from devices.transports.adb.devices import LOCAL_CLIENT, Client
from devices.transports.browser.phone import phone_chrome
from runtimes.bundle.write import write_site
from runtimes.errors import RequestError, TransportError

HERE = Path(__file__).parent
START_S = 30.0  # for a phone's Chrome


class SiteHandler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: stderr is for what people must know."""


@contextlib.contextmanager
def serve_site(artifact: Path, libraries: Path | None) -> Iterator[str]:
    """The page files, the libraries and the artifact on a free port of this machine. -> the address."""
    with tempfile.TemporaryDirectory(prefix="phi-edge-site-") as name:
        folder = Path(name)
        write_site(folder, libraries)
        for file in ("agent.html", "agent.js"):
            (folder / file).write_bytes((HERE / file).read_bytes())
        (folder / "model").symlink_to(artifact.resolve(), target_is_directory=True)
        handler = functools.partial(SiteHandler, directory=name)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


@contextlib.asynccontextmanager
async def own_browser(program: str, options: list[str], *, headless: bool) -> AsyncIterator[Page]:
    """A page in a browser that is started for it."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=options, headless=headless)
        yield await browser.new_page()
        await browser.close()


@contextlib.asynccontextmanager
async def phone_browser(site: str, serial: str, client: Client) -> AsyncIterator[Page]:
    """A page in a phone's Chrome, beside its owner's."""
    with phone_chrome(site, serial, client) as devtools:
        async with async_playwright() as playwright:
            browser = await _connect(playwright, devtools)
            page = await browser.contexts[0].new_page()
            try:
                yield page
            finally:
                with contextlib.suppress(Error):  # where the phone or its Chrome has gone
                    session = await page.context.new_cdp_session(page)
                    await session.send("Storage.clearDataForOrigin", {"origin": site, "storageTypes": "all"})
                    await page.close()


async def _connect(playwright: Playwright, devtools: str) -> Browser:
    """As soon as the phone's Chrome answers. Raises Error."""
    until_s = time.monotonic() + START_S
    while True:
        try:
            return await playwright.chromium.connect_over_cdp(devtools)
        except Error:
            if time.monotonic() > until_s:
                raise
            await asyncio.sleep(0.5)


async def talk(site: str, opening: contextlib.AbstractAsyncContextManager[Page], *, silence_s: float | None) -> int:
    """Open the page and pass lines on until stdin ends. -> the exit code."""
    ended = asyncio.Event()
    async with opening as page:
        browser = page.context.browser
        assert browser is not None
        page.on("console", _log)
        page.on("crash", lambda _: ended.set())
        page.on("close", lambda _: ended.set())
        browser.on("disconnected", lambda _: ended.set())
        await page.expose_binding("phiEdgeWrite", lambda _, line: _write(line))
        await page.goto(f"{site}/agent.html", wait_until="commit")
        await page.wait_for_function("Boolean(globalThis.phiEdgeRead)")
        reading = asyncio.create_task(_read(page, silence_s))
        await asyncio.wait([reading, asyncio.create_task(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise RequestError("the browser has ended")
        return await reading


async def _read(page: Page, silence_s: float | None) -> int:
    """Lines to the page until the input ends (0), or none came for too long (3)."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def pump() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            line = await asyncio.wait_for(lines.get(), silence_s)
        except TimeoutError:
            return 3
        if not line:
            return 0
        await page.evaluate("line => phiEdgeRead(line)", line)


def _write(line: str) -> None:
    print(line, flush=True)


def _log(message: ConsoleMessage) -> None:
    print(f"browser: {message.text}", file=sys.stderr)


def main() -> int:
    """See the module; -> the exit code."""
    parser = argparse.ArgumentParser(prog="devices.transports.browser", allow_abbrev=False)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--program")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--window", action="store_true")
    parser.add_argument("--serial")  # of a phone
    parser.add_argument("--adb", default=LOCAL_CLIENT.program)
    parser.add_argument("--server")
    parser.add_argument("--libraries", type=Path)
    parser.add_argument("--silence-s", type=float)
    parser.add_argument("--cold", action="store_true")  # it is: the profile is new
    asked = parser.parse_args()
    try:
        with serve_site(asked.artifact, asked.libraries) as site:
            if asked.serial is None:
                opening = own_browser(asked.program, asked.option, headless=not asked.window)
            else:
                opening = phone_browser(site, asked.serial, Client(asked.adb, asked.server))
            return asyncio.run(talk(site, opening, silence_s=asked.silence_s))
    except (Error, RequestError, TransportError) as error:
        message = " ".join(str(error).split())
        _write(json.dumps({"event": "error", "request": None, "code": "engine", "message": message, "fatal": True}))
        return 2


if __name__ == "__main__":
    sys.exit(main())
