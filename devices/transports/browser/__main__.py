"""`python -m devices.transports.browser ARTIFACT`: an agent whose model runs in a browser, here or on a phone.

It serves the web bundle's page files and the artifact on a free port of 127.0.0.1, opens agent.html, and passes the
lines of the agent protocol on between stdin, stdout and the page.
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
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from playwright.async_api import Error

from devices.transports.adb.devices import LOCAL_CLIENT, Client
from devices.transports.browser.devtools import devtools_page
from devices.transports.browser.page import AgentPage, own_page
from devices.transports.browser.phone import Phone, phone_chrome
from runtimes.bundle.write import write_site
from runtimes.errors import RequestError, TransportError

HERE = Path(__file__).parent


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
async def phone_page(phone: Phone, site: str) -> AsyncIterator[tuple[AgentPage, str]]:
    """A page in the phone's Chrome, and the site's address there."""
    with phone_chrome(phone, site) as (devtools, there):
        async with devtools_page(devtools, there) as page:
            yield page, there


async def talk(page: AgentPage, site: str, *, silence_s: float | None) -> int:
    """Go to the agent and pass lines on until stdin ends. -> the exit code. Raises RequestError."""
    await page.go(f"{site}/agent.html", _write)
    while not await page.evaluate("Boolean(globalThis.phiEdgeRead)"):
        await asyncio.sleep(0.05)
    if await page.evaluate("document.visibilityState") != "visible":
        raise RequestError("the page is hidden, and browsers slow such pages down; unlock the phone and leave it on")
    reading = asyncio.create_task(_read(page, silence_s))
    await asyncio.wait([reading, asyncio.create_task(page.ended.wait())], return_when=asyncio.FIRST_COMPLETED)
    if not reading.done():
        raise RequestError("the browser has ended")
    return await reading


async def _read(page: AgentPage, silence_s: float | None) -> int:
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
        await page.evaluate(f"phiEdgeRead({json.dumps(line)})")


def _write(line: str) -> None:
    print(line, flush=True)


async def serve(asked: argparse.Namespace, site: str) -> int:
    """The agent, in the browser that is asked for. -> the exit code."""
    if asked.serial is not None:
        phone = Phone(asked.serial, asked.phone_port, Client(asked.adb, asked.server))
        async with phone_page(phone, site) as (page, there):
            return await talk(page, there, silence_s=asked.silence_s)
    async with own_page(asked.program, asked.option, headless=not asked.window) as page:
        return await talk(page, site, silence_s=asked.silence_s)


def main() -> int:
    """See the module; -> the exit code."""
    parser = argparse.ArgumentParser(prog="devices.transports.browser", allow_abbrev=False)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--program")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--window", action="store_true")
    parser.add_argument("--serial")  # of a phone
    parser.add_argument("--phone-port", type=int)
    parser.add_argument("--adb", default=LOCAL_CLIENT.program)
    parser.add_argument("--server")
    parser.add_argument("--libraries", type=Path)
    parser.add_argument("--silence-s", type=float)
    parser.add_argument("--cold", action="store_true")  # it is: nothing is kept from one time to the next
    asked = parser.parse_args()
    try:
        with serve_site(asked.artifact, asked.libraries) as site:
            return asyncio.run(serve(asked, site))
    except (Error, RequestError, TransportError) as error:
        message = " ".join(str(error).split())
        _write(json.dumps({"event": "error", "request": None, "code": "engine", "message": message, "fatal": True}))
        return 2


if __name__ == "__main__":
    sys.exit(main())
