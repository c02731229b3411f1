"""`python -m devices.transports.browser ARTIFACT`: an agent whose model runs in a browser of this machine.

It serves the web bundle's page files and the artifact on a free port of 127.0.0.1, opens agent.html in a Chromium that
Playwright drives, and passes the lines of the agent protocol on between stdin, stdout and the page. The browser's
profile is new each time, and removed at the end.
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
from collections.abc import Iterator
from pathlib import Path

from playwright.async_api import ConsoleMessage, Error, Page, async_playwright

from runtimes.bundle.write import write_site
from runtimes.errors import RequestError

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


async def talk(address: str, program: str, options: list[str], *, headless: bool, silence_s: float | None) -> int:
    """Open the page and pass lines on until stdin ends. -> the exit code."""
    ended = asyncio.Event()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=options, headless=headless)
        page = await browser.new_page()
        page.on("console", _log)
        page.on("crash", lambda _: ended.set())
        browser.on("disconnected", lambda _: ended.set())
        await page.expose_binding("phiEdgeWrite", lambda _, line: _write(line))
        await page.goto(f"{address}/agent.html", wait_until="commit")
        await page.wait_for_function("Boolean(globalThis.phiEdgeRead)")
        reading = asyncio.create_task(_read(page, silence_s))
        await asyncio.wait([reading, asyncio.create_task(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise RequestError("the browser has ended")
        code = await reading
        await browser.close()
    return code


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
    parser.add_argument("--program", required=True)
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--window", action="store_true")
    parser.add_argument("--libraries", type=Path)
    parser.add_argument("--silence-s", type=float)
    parser.add_argument("--cold", action="store_true")  # it is: the profile is new
    asked = parser.parse_args()
    try:
        with serve_site(asked.artifact, asked.libraries) as address:
            speaking = talk(address, asked.program, asked.option, headless=not asked.window, silence_s=asked.silence_s)
            return asyncio.run(speaking)
    except (Error, RequestError) as error:
        message = " ".join(str(error).split())
        _write(json.dumps({"event": "error", "request": None, "code": "engine", "message": message, "fatal": True}))
        return 2


if __name__ == "__main__":
    sys.exit(main())
