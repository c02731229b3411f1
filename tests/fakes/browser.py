"""Debian's Chromium with its software adapter, driven by Playwright: as a device of a lab, and as pages."""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Playwright

from devices.drivers.browser import SOFTWARE
from fakes.lab_file import lab_file


def chromium() -> str:
    """Its path; skips where it is not installed."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs chromium: run ci/install_system.sh")
    return program


def software_browser(folder: Path) -> Path:
    """A lab file with the device `browser`."""
    lab = folder / "lab.toml"
    lab.write_text(lab_file("browser", {"transport": "browser", "program": chromium(), "software": True}))
    return lab


@contextlib.contextmanager
def listening_browser(profile: Path) -> Iterator[int]:
    """A browser that others drive, as a phone's Chrome is. -> the port of its DevTools."""
    options = ["--headless=new", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={profile}", *SOFTWARE]
    with subprocess.Popen([chromium(), *options, "about:blank"], stderr=subprocess.DEVNULL) as browser:
        try:
            until_s = time.monotonic() + 60
            port_file = profile / "DevToolsActivePort"
            while not (port_file.exists() and port_file.read_text().strip()):
                assert time.monotonic() < until_s and browser.poll() is None, "Chromium does not listen"
                time.sleep(0.1)
            yield int(port_file.read_text().splitlines()[0])
        finally:
            browser.terminate()


@contextlib.contextmanager
def served_folder(folder: Path) -> Iterator[str]:
    """Any static server. -> the address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def browser_context(playwright: Playwright, profile: Path, *, bypass_csp: bool = True) -> Iterator[BrowserContext]:
    """A browser whose caches are in `profile`. Playwright's own evaluations need `bypass_csp`."""
    context = playwright.chromium.launch_persistent_context(
        str(profile),
        executable_path=chromium(),
        args=list(SOFTWARE),
        bypass_csp=bypass_csp,
        viewport={"width": 820, "height": 520},
    )
    yield context
    context.close()
