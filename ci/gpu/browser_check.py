"""A real model through the web bundle in a headless Chromium, beside ONNX Runtime's CPU provider.

    python -m ci.gpu.browser_check [--artifact FOLDER] [--tokens 8]         (make browser)

Without an artifact, SmolLM2 (ci/real_model.py) is exported for the web in float32, in 4 bits. The page answers 20
questions, is loaded again from the browser's cache, and ends an answer that is cancelled. Chromium's software adapter
computes, so it takes most of an hour. Exit code 1 if a greedy token is another than the CPU's, if the second visit
downloads weights again, or if the cancelled answer goes on.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from playwright.sync_api import Page, sync_playwright

from ci.gpu.questions import twenty_questions
from ci.gpu.work import greedy
from ci.real_model import build_real_model
from devices.drivers.browser import SOFTWARE
from devices.transports.browser.__main__ import SiteHandler
from export.artifact import Artifact, open_artifact
from export.pipeline import export_model
from export.request import ExportRequest
from runtimes.bundle.write import write_bundle
from runtimes.engines.onnx_engine import open_onnx
from runtimes.text.tokenizer import Tokenizer

OPEN = """async () => {
  const { openRuntime } = await import("./phi-edge.js");
  globalThis.runtime = await openRuntime();
  return `${globalThis.runtime.activations} on ${globalThis.runtime.accelerator}`;
}"""
# Greedy tokens after a prompt; with `cancel`, the request is cancelled at its first one. -> the events
GENERATE = """async ({ prompt, tokens, cancel }) => {
  const events = [], controller = new AbortController();
  const request = { prompt, max_new_tokens: tokens, ignore_stop_ids: true, signal: controller.signal };
  for await (const event of globalThis.runtime.generate(request)) {
    events.push(event);
    if (cancel) controller.abort();
  }
  return events;
}"""


@click.command()
@click.option("--artifact", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--tokens", type=click.IntRange(1), default=8, show_default=True, help="Of each answer.")
def main(folder: Path | None, tokens: int) -> None:
    """Print a line for each question, and what the page did beside."""
    with tempfile.TemporaryDirectory() as name:
        artifact = open_artifact(folder) if folder else export_real(Path(name) / "artifact")
        write_bundle(artifact, Path(name) / "site", "web")
        with open_page(Path(name) / "site", Path(name) / "profile") as page:
            wrong = [*first_visit(page, artifact, twenty_questions(), tokens), *second_visit(page)]
    for line in wrong:
        click.echo(f"wrong: {line}")
    raise SystemExit(int(bool(wrong)))


def export_real(out: Path) -> Artifact:
    """SmolLM2 for the web."""
    return export_model(
        ExportRequest(
            checkpoint=str(build_real_model("phi3")), out=out, target="web", activations="float32", scheme="int4-b32",
            context_tokens=128,
        )
    )  # fmt: skip


@contextlib.contextmanager
def open_page(site: Path, profile: Path) -> Iterator[Page]:
    """A page of the site, in a Chromium whose caches are in `profile`."""
    handler = functools.partial(SiteHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=shutil.which("chromium"), args=list(SOFTWARE), bypass_csp=True
        )
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/README.md")
        yield page
        context.close()
        server.shutdown()


def first_visit(page: Page, artifact: Artifact, prompts: Sequence[str], tokens: int) -> Iterator[str]:
    """The answers that part from the CPU provider's, and how far its logits of the two tokens are apart."""
    begin = time.perf_counter()
    click.echo(f"{page.evaluate(OPEN)}, loaded in {time.perf_counter() - begin:.0f} s")
    tokenizer = Tokenizer(artifact.folder, artifact.manifest.files)
    with contextlib.closing(open_onnx(artifact, None)) as engine:
        for prompt in prompts:
            begin = time.perf_counter()
            *events, _ = ask(page, prompt, tokens)
            said = "".join(event["text"] for event in events)
            expected, logits = greedy(engine, tokenizer.encode_prompt(prompt), tokens)
            found = [event["id"] for event in events]
            same = "the CPU's" if found == expected else "not the CPU's"
            click.echo(f"{prompt!r} -> {said!r}: {same}, {time.perf_counter() - begin:.0f} s")
            if found != expected:
                pairs = zip(found, expected, strict=True)
                at = next(place for place, pair in enumerate(pairs) if len(set(pair)) > 1)
                gap = float(logits[at].max() - logits[at, found[at]])
                yield f"{prompt!r}: token {at} is {found[at]}; the CPU's is {expected[at]}, its logit {gap:.2g} higher"


def second_visit(page: Page) -> Iterator[str]:
    """What is wrong with the browser's cache, and with cancelling."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.evaluate(OPEN)
    for url in asked:
        if "/model/" in url and not url.endswith("/manifest.json"):
            yield f"the second visit asked for {url}"
    *_, done = ask(page, "Once upon a time", 100, cancel=True)
    if (done["finish"], done["usage"]["completion"]) != ("cancelled", 1):
        yield f"a cancelled answer ended with {done['finish']} after {done['usage']['completion']} tokens"


def ask(page: Page, prompt: str, tokens: int, *, cancel: bool = False) -> list[dict[str, Any]]:
    """The events of one request."""
    events: list[dict[str, Any]] = page.evaluate(GENERATE, {"prompt": prompt, "tokens": tokens, "cancel": cancel})
    return events


if __name__ == "__main__":
    main()
