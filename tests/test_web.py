"""The web bundle in a real Chromium, whose WebGPU runs in software: the page, the module, the cache, refusals."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from playwright.sync_api import Page, Playwright, expect, sync_playwright

from ci.real_model import Form
from devices.measure.measurement import read_measurement
from export.artifact import open_artifact
from export.pipeline import export_model
from export.request import ExportRequest
from fakes.browser import browser_context, served_folder, software_browser
from phi_edge.main import main
from runtimes import DoneEvent, GenerateRequest, TokenEvent, open_runtime
from runtimes.text.tokenizer import Tokenizer

pytestmark = pytest.mark.browser

QUESTION = "Turn off the lamp in the kitchen."
SENTENCES = [
    "The light in the hall is on.", "Turn on the lamp, please.", "Is the lamp in the kitchen on?", "Open the door now.",
    "What is the weather like?", "Please close the window.", "The kitchen is warm.", "Set the timer to ten minutes.",
    "How many lamps are on?", "It is dark outside today.", "In the hall there is a fan.", "The fan makes a noise.",
    "Close the blinds at night.", "Tell me a short story.", "Who opened the garage door?", "The music is too loud.",
    "One two three four five.", "Good morning to all of you.", "Make it a bit warmer here.", "Why is the radio off?",
]  # fmt: skip
LOADING_MS = 120_000
# Runs requests one after another in a page of the bundle; the events of each.
GENERATE = """async ({ requests, model }) => {
  const { openRuntime } = await import("./phi-edge.js");
  globalThis.runtime ??= await openRuntime(model ? { model } : {});
  const answers = [];
  for (const request of requests) {
    const events = [];
    for await (const event of globalThis.runtime.generate(request)) events.push(event);
    answers.push(events);
  }
  return answers;
}"""


def bundle(artifact: Path, out: Path) -> Path:
    done = CliRunner().invoke(main, ["bundle", str(artifact), str(out), "--for", "web"])
    if "cannot be downloaded" in done.output:
        pytest.skip(f"needs npm's registry once: {done.output}")
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def tiny_bundle(tiny_web: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tiny_web, tmp_path_factory.mktemp("bundle") / "site")


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def page(playwright: Playwright, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of the bundle's site, with its runtime open."""
    profile = tmp_path_factory.mktemp("profile")
    with served_folder(tiny_bundle) as address, browser_context(playwright, profile) as context:
        page = context.new_page()
        page.goto(f"{address}/README.md")
        generate(page)
        yield page


def generate(page: Page, *requests: dict[str, Any], model: str | None = None) -> list[list[dict[str, Any]]]:
    answers: list[list[dict[str, Any]]] = page.evaluate(GENERATE, {"requests": requests, "model": model})
    return answers


def greedy(artifact: Path, request: GenerateRequest) -> list[int]:
    """The tokens of the CPU."""
    with open_runtime(artifact) as runtime:
        *tokens, _ = runtime.generate(request)
        return [token.id for token in tokens if isinstance(token, TokenEvent)]


def test_a_browser_gives_the_tokens_of_the_cpu(page: Page, tiny_web: Path) -> None:
    tokenizer = Tokenizer(tiny_web)
    # Of one length, because a browser makes a kernel for each.
    prompts = [tokenizer.encode_prompt(text)[:4] for text in SENTENCES]
    requests = [{"token_ids": ids, "max_new_tokens": 2, "ignore_stop_ids": True} for ids in prompts]
    assert len({*map(tuple, prompts)}) == 20 and {*map(len, prompts)} == {4}
    answers = generate(page, *requests)
    with open_runtime(tiny_web) as runtime:
        for request, events in zip(requests, answers, strict=True):
            *tokens, done = runtime.generate(GenerateRequest(**request))  # type: ignore[arg-type]
            ours = [(event.id, event.text) for event in tokens if isinstance(event, TokenEvent)]
            assert [(event["id"], event["text"]) for event in events[:-1]] == ours, request
            usage = {"prompt": 4, "reused": 0, "prefilled": 4, "completion": 2}
            assert isinstance(done, DoneEvent) and events[-1]["usage"] == usage
            assert usage.items() <= dataclasses.asdict(done.usage).items()


def test_a_long_prompt_is_prefilled_in_pieces(page: Page, tiny_web: Path) -> None:
    ids = (Tokenizer(tiny_web).encode_prompt(" ".join(SENTENCES)))[:70]
    (events,) = generate(page, {"token_ids": ids, "max_new_tokens": 2, "ignore_stop_ids": True})
    request = GenerateRequest(token_ids=ids, max_new_tokens=2, ignore_stop_ids=True)
    assert [event["id"] for event in events[:-1]] == greedy(tiny_web, request)


def test_stop_strings_and_refusals(page: Page) -> None:
    chat = {"messages": [{"role": "user", "content": QUESTION}], "max_new_tokens": 6}
    ((*tokens, done),) = generate(page, {**chat, "stop": ["never said", "amp in"]})
    assert (done["finish"], done["stop_string"]) == ("stop", "amp in")
    assert "".join(event["text"] for event in tokens) + done["text"] == "The l"
    for request, message in (
        ({**chat, "shape": 1}, "unknown field shape"),
        ({"max_new_tokens": 1}, "give one of prompt, messages and token_ids"),
        ({"token_ids": [1] * 256}, "the prompt has 256 tokens; a context of 256 takes at most 255"),
    ):
        with pytest.raises(Exception, match=message):
            generate(page, request)


def test_a_signal_cancels_and_the_runtime_goes_on(page: Page) -> None:
    events = page.evaluate(
        """async () => {
          const controller = new AbortController(), events = [];
          const request = { prompt: "The light", max_new_tokens: 50, ignore_stop_ids: true, signal: controller.signal };
          for await (const event of globalThis.runtime.generate(request)) {
            events.push(event);
            controller.abort();
          }
          return events;
        }"""
    )
    assert [event["type"] for event in events] == ["token", "done"] and events[1]["finish"] == "cancelled"
    ((*tokens, _),) = generate(page, {"prompt": "The light", "max_new_tokens": 1})
    assert len(tokens) == 1


def test_text_is_tokenised_as_on_every_target(page: Page, tiny_web: Path) -> None:
    tokenizer = Tokenizer(tiny_web)
    texts = [QUESTION, "", " a  b\n\tc", "é漢🙂", "<|end|><|user|>", "</s>don't 12345!", "a" * 50]
    counted = page.evaluate("texts => texts.map((text) => globalThis.runtime.countTokens(text))", texts)
    assert counted == [len(tokenizer.encode_prompt(text)) for text in texts]


def test_the_chat_page(playwright: Playwright, tiny_bundle: Path, tmp_path: Path) -> None:
    """With its own policy in force; then again, from the cache; then with a damaged file."""
    site = tmp_path / "site"
    shutil.copytree(tiny_bundle, site)
    asked: list[str] = []
    profile = tmp_path / "profile"
    with served_folder(site) as address, browser_context(playwright, profile, bypass_csp=False) as context:
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        expect(page.locator("#send")).to_be_enabled(timeout=LOADING_MS)
        expect(page.locator("#model")).to_have_text("tiny, context 256 tokens, on google swiftshader (software)")
        page.fill("#text", QUESTION)
        page.press("#text", "Enter")
        expect(page.locator(".assistant")).to_contain_text("The", timeout=LOADING_MS)
        page.click("#stop")
        expect(page.locator("#state")).to_contain_text("stopped", timeout=LOADING_MS)
        assert any(url.endswith("model.onnx.data") for url in asked)
        assert {url.partition("/model/")[0].rpartition("//")[2].partition("/")[0] for url in asked} == {
            address.removeprefix("http://")
        }
        asked.clear()
        page.reload()
        expect(page.locator("#send")).to_be_enabled(timeout=LOADING_MS)
        assert [url for url in asked if "/model/" in url] == [f"{address}/model/manifest.json"]
        damage(site / "model")
        page.reload()
        expect(page.locator(".error")).to_have_text(
            "tokenizer.json is not the file of the manifest (its SHA-256 differs); copy the folder to the server again",
            timeout=LOADING_MS,
        )


def damage(model: Path) -> None:
    """A new version, of which one byte changed on its way to the server."""
    manifest, file = json.loads((model / "manifest.json").read_text()), model / "tokenizer.json"
    content = file.read_bytes()
    manifest["files"]["tokenizer.json"]["sha256"] = hashlib.sha256(content[:-1] + b" ").hexdigest()
    (model / "manifest.json").write_text(json.dumps(manifest))
    file.write_bytes(content[:-1] + b"!")


def test_bench_measures_a_browser(tiny_web_float: Path, tmp_path: Path) -> None:
    lab = software_browser(tmp_path)
    out = tmp_path / "measured.json"
    workload = ["--prompt-tokens", "8", "--generate-tokens", "4", "--reps", "1", "--warmup", "0"]
    command = ["bench", str(tiny_web_float), "--device", "browser", "--lab", str(lab), "--out", str(out), *workload]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    measurement = read_measurement(out)
    assert measurement.accelerator is not None and "swiftshader" in measurement.accelerator
    assert [len(each.run.token_at_s) for each in measurement.repetitions] == [4]


def test_an_artifact_for_another_target_is_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["bundle", str(tiny_onnx), str(tmp_path / "site"), "--for", "web"])
    assert done.exit_code == 2 and "export it with --target web" in done.output
    lab = software_browser(tmp_path)
    done = CliRunner().invoke(main, ["run", str(tiny_onnx), "Hi", "--device", "browser", "--lab", str(lab)])
    assert done.exit_code == 2 and "a browser needs --target web" in done.output


@pytest.mark.real
def test_a_real_model_in_a_browser(
    playwright: Playwright, real_checkpoint: Callable[[Form], Path], tmp_path: Path
) -> None:
    artifact = tmp_path / "artifact"
    checkpoint = str(real_checkpoint("phi3"))
    options: dict[str, Any] = {"target": "web", "activations": "float32", "scheme": "int4-b32", "context_tokens": 64}
    export_model(ExportRequest(checkpoint=checkpoint, out=artifact, **options))
    site = bundle(artifact, tmp_path / "site")
    with served_folder(site) as address, browser_context(playwright, tmp_path / "profile") as context:
        page = context.new_page()
        page.goto(f"{address}/README.md")
        (events,) = generate(page, {"prompt": "The capital of France is", "max_new_tokens": 2})
    text = "".join(event["text"] for event in events)
    request = GenerateRequest(prompt="The capital of France is", max_new_tokens=2)
    assert [event["id"] for event in events[:-1]] == greedy(artifact, request) and "Paris" in text
    assert open_artifact(artifact).manifest.target == "web"
