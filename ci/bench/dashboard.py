"""How long the dashboard takes over 100,000 repetitions: to compute the figures, to build, to open. And its picture.

python -m ci.bench.dashboard [--nights N] [--picture docs/dashboard.png]

The history is synthetic (ci/bench/lab_history.py), and the page says so. It needs Debian's chromium and playwright.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ci.bench.lab_history import DEVICES, MODELS, REPETITIONS, nights

TITLE = "Phi Edge lab: synthetic data"
WIDTH, HEIGHT = 1640, 1490
OPENED = """async () => {
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 200)));
  const page = performance.getEntriesByType("navigation")[0];
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return [page.loadEventEnd / 1000, paint.startTime / 1000];
}"""


def main() -> None:
    """Make the history, and print how long each step took."""
    parser = argparse.ArgumentParser(description="How long the dashboard takes over 100,000 repetitions.")
    parser.add_argument("--nights", type=int, default=334)
    parser.add_argument("--picture", type=Path, help="a screenshot of the page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files, store, page = (Path(folder) / name for name in ("files", "store", "lab.html"))
        files.mkdir()
        count = 0
        for count, measurement in enumerate(nights(options.nights), start=1):
            (files / f"{count}.json").write_text(measurement.to_json())
        cells = len(DEVICES) * len(MODELS)
        print(f"{count * REPETITIONS:,} repetitions in {count:,} measurements of {cells} cells", flush=True)
        _timed("add, and compute the figures once", ["history", str(store), str(files)])
        _timed("build", ["history", str(store), "--html", str(page), "--title", TITLE])
        print(f"the page has {page.stat().st_size / 1e6:.1f} MB")
        _open(page, options.picture)


def _timed(what: str, words: list[str]) -> None:
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-m", "phi_edge", *words], check=True)
    print(f"{what}: {time.monotonic() - began_s:.1f} s", flush=True)


def _open(page: Path, picture: Path | None) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        # Its own evaluations need bypass_csp; the page's policy is a test's matter.
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, bypass_csp=True)
        for number in range(3):
            tab.goto(page.as_uri())
            loaded_s, painted_s = tab.evaluate(OPENED)
            print(
                f"open {number + 1}: first paint after {painted_s:.2f} s, complete after {loaded_s:.2f} s", flush=True
            )
        if picture is not None:
            tab.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main()
