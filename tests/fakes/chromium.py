"""Debian's Chromium without a window, driven through its own protocol over two pipes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import pytest


class Page:
    """One page. `evaluate` runs JavaScript in it; `console` is what it, or the browser about it, complained about."""

    def __init__(self, commands: BinaryIO, replies: BufferedReader) -> None:
        self._commands, self._replies = commands, replies
        self._number, self._rest = 0, b""
        self.console: list[str] = []
        target = self._ask("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
        attach = {"targetId": target, "flatten": True}
        self._session = self._ask("Target.attachToTarget", attach, session=None)["sessionId"]
        for domain in ("Log", "Page", "Runtime"):
            self._ask(f"{domain}.enable", {}, self._session)

    def open(self, url: str) -> None:
        """Go to a page."""
        self._ask("Page.navigate", {"url": url}, self._session)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression."""
        result = self._ask("Runtime.evaluate", {"expression": expression, "returnByValue": True}, self._session)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60.0) -> None:
        """Wait until it is true."""
        until_s = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < until_s, f"{expression} did not become true; console: {self.console}"
            time.sleep(0.05)

    def _ask(self, method: str, parameters: dict[str, Any], session: str | None) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._commands.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        self._commands.flush()
        while (reply := self._read()).get("id") != self._number:
            if reply.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                self.console.append(json.dumps(reply["params"]))
        assert "error" not in reply, reply
        result: dict[str, Any] = reply["result"]
        return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = self._replies.read1(1 << 16)
            assert piece, "Chromium ended"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


@contextlib.contextmanager
def chromium_page(profile: Path) -> Iterator[Page]:
    """A page in a browser of its own; skips where there is no Chromium."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs chromium: apt-get install --no-install-recommends chromium")
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # The protocol's pipes are descriptors 3 and 4.
    command = 'exec "$0" "$@" 3<&"$IN" 4>&"$OUT"'
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               f"--user-data-dir={profile}", "--remote-debugging-pipe"]  # fmt: skip
    browser = subprocess.Popen(
        ["bash", "-c", command, program, *options],
        env=os.environ | {"IN": str(theirs_in), "OUT": str(theirs_out)},
        pass_fds=(theirs_in, theirs_out),
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    with browser, os.fdopen(ours_in, "rb") as replies, os.fdopen(ours_out, "wb") as commands:
        yield Page(commands, replies)  # the end of its input ends the browser
