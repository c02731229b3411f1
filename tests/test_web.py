"""The web bundle in a real Chromium, whose WebGPU runs in software: the page, the module, the cache, refusals."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from playwright.sync_api import Page, Playwright, expect, sync_playwright

from ci.gpu.questions import twenty_questions
from devices.measure.measurement import read_measurement
from devices.transports.adb.devices import Client
from devices.transports.browser.devtools import devtools_page
from fakes.adbd import FakeAdbd
from fakes.browser import browser_context, listening_browser, served_folder, software_browser
from fakes.lab_file import lab_file
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
# A request that a signal ends after its first token; its events.
CANCEL = """async () => {
  const controller = new AbortController(), events = [];
  const request = { prompt: "The light", max_new_tokens: 50, ignore_stop_ids: true, signal: controller.signal };
  for await (const event of globalThis.runtime.generate(request)) {
    events.push(event);
    controller.abort();
  }
  return events;
}"""


def bundle(artifact: Path, out: Path, *more: str) -> Path:
    done = CliRunner().invoke(main, ["bundle", str(artifact), str(out), "--for", "web", *more])
    if "cannot be downloaded" in done.output:
        pytest.skip(f"needs npm's registry once: {done.output}")
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def tiny_bundle(tiny_web: Path, tiny_web_half: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the model in both float types."""
    return bundle(tiny_web, tmp_path_factory.mktemp("bundle") / "site", "--also", str(tiny_web_half))


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
    ids = Tokenizer(tiny_web).encode_prompt(" ".join(SENTENCES))[:70]
    assert len(ids) == 70
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
    events = page.evaluate(CANCEL)
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
        expect(page.locator("#model")).to_have_text(
            "tiny, context 256 tokens, float32 on google swiftshader (software)"
        )
        page.fill("#text", QUESTION)
        page.press("#text", "Enter")
        expect(page.locator(".assistant")).to_contain_text("The", timeout=LOADING_MS)
        page.click("#stop")
        expect(page.locator("#state")).to_contain_text("stopped", timeout=LOADING_MS)
        assert {url.rpartition("//")[2].partition("/")[0] for url in asked} == {address.removeprefix("http://")}
        files = [url.removeprefix(f"{address}/model-") for url in asked if "/model-" in url]
        assert "float32/model.onnx.data" in files
        assert [file for file in files if file.startswith("float16/")] == ["float16/manifest.json"]
        asked.clear()
        page.reload()
        expect(page.locator("#send")).to_be_enabled(timeout=LOADING_MS)
        assert sorted(url.removeprefix(address) for url in asked if "/model-" in url) == [
            "/model-float16/manifest.json",
            "/model-float32/manifest.json",
        ]
        damage(site / "model-float32")
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


# What is chosen of a bundle's models on an adapter that has float16, or not, and buffers of so many bytes.
CHOOSE = """async ({ folders, half, most }) => {
  const { chooseModel } = await import("./adapter.js");
  const { loadManifest } = await import("./store.js");
  const adapter = {
    features: new Set(half ? ["shader-f16"] : []), limits: { maxStorageBufferBindingSize: most },
    info: { vendor: "acme", architecture: "one", description: "" },
  };
  const requestAdapter = navigator.gpu.requestAdapter;
  navigator.gpu.requestAdapter = async () => adapter;
  try {
    const bases = folders.map((name) => new URL(`${name}/`, location.href));
    const models = bases.map(async (base) => ({ base, manifest: await loadManifest(base) }));
    return (await chooseModel(await Promise.all(models))).base.pathname;
  } catch (error) {
    return error.message;
  } finally {
    navigator.gpu.requestAdapter = requestAdapter;
  }
}"""
BOTH = ["model-float16", "model-float32"]


@pytest.mark.parametrize(
    ("folders", "half", "most", "expected"),
    [
        (BOTH, True, 1 << 30, "/model-float16/"),
        (BOTH, False, 1 << 30, "/model-float32/"),
        (BOTH[1:], True, 1 << 30, "/model-float32/"),
        (BOTH[:1], False, 1 << 30, "acme one has no float16 (shader-f16), which this model needs; export it with "
                                   "--activations float32 (phi-edge bundle --also takes both)"),
        (BOTH, False, 1 << 14, "a layer's keys for 256 tokens have 65536 bytes, and acme one takes 16384 in a buffer; "
                               "export with a shorter --context"),
    ],
)  # fmt: skip
def test_what_runs_is_decided_by_the_adapter(
    page: Page, folders: list[str], half: bool, most: int, expected: str
) -> None:
    """Before anything but the manifests is downloaded."""
    assert page.evaluate(CHOOSE, {"folders": folders, "half": half, "most": most}) == expected


def test_bench_measures_a_browser(tiny_web_float: Path, tmp_path: Path) -> None:
    lab = software_browser(tmp_path)
    out = tmp_path / "measured.json"
    workload = ["--prompt-tokens", "8", "--generate-tokens", "4", "--reps", "1", "--warmup", "0"]
    command = ["bench", str(tiny_web_float), "--device", "browser", "--lab", str(lab), "--out", str(out), *workload]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    measurement = read_measurement(out)
    assert measurement.accelerator == "google swiftshader (software), float32"
    assert [len(each.run.token_at_s) for each in measurement.repetitions] == [4]


@pytest.mark.emulated
def test_a_phone_s_browser_is_driven_through_adb(
    phone: FakeAdbd, adb: Client, tiny_web_float: Path, tmp_path: Path
) -> None:
    """The phone is a fake, whose Chrome is this machine's Chromium; the adb client and its forwards are real."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        site = f"http://127.0.0.1:{free.getsockname()[1]}"
    address: dict[str, Any] = {
        "serial": f"127.0.0.1:{phone.port}",
        "server": adb.server,
        "phone_port": int(site.rpartition(":")[2]),
    }
    lab = tmp_path / "lab.toml"
    lab.write_text(lab_file("phone", {"transport": "browser"} | address))
    runner, where = CliRunner(), ["--device", "phone", "--lab", str(lab)]
    out = tmp_path / "measured.json"
    workload = ["--prompt-tokens", "8", "--generate-tokens", "4", "--reps", "1", "--warmup", "0"]
    with listening_browser(tmp_path / "profile") as port:
        phone.phone.devtools_port = port
        devtools = f"http://127.0.0.1:{port}/json"
        # What an agent that was killed has left open.
        urllib.request.urlopen(urllib.request.Request(f"{devtools}/new?{site}/agent.html", method="PUT"), timeout=30)
        done = runner.invoke(main, ["bench", str(tiny_web_float), *where, "--out", str(out), *workload])
        assert done.exit_code == 0, done.output
        with urllib.request.urlopen(f"{devtools}/list", timeout=30) as answer:
            assert [each["url"] for each in json.load(answer) if each["type"] == "page"] == ["about:blank"]
        assert kept_bytes(port, site) == 0
    measurement = read_measurement(out)
    assert measurement.accelerator == "google swiftshader (software), float32"
    assert measurement.before.cpu_model == "Fake Phone 1 FK1000"
    assert phone.phone.reverses == {}
    command = ["adb", "-P", str(adb.server).rpartition(":")[2], "forward", "--list"]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip() == ""
    done = runner.invoke(main, ["doctor", "phone", "--lab", str(lab)])
    assert "com.android.chrome" in done.output, done.output
    (phone.phone.folder / "bin/am").write_text(
        "#!/bin/sh\necho 'Error: Activity not started, unable to resolve Intent'\n"
    )
    done = runner.invoke(main, ["run", str(tiny_web_float), "Hi", *where])
    assert done.exit_code == 2 and "did not start Chrome: Error: Activity not started" in done.output, done.output


def kept_bytes(port: int, site: str) -> int:
    """What the site's pages have left in a browser."""

    async def ask() -> int:
        async with devtools_page(f"http://127.0.0.1:{port}", "http://127.0.0.1:9") as page:
            answer = await page.call("Storage.getUsageAndQuota", origin=site)
            return int(answer["usage"])

    with ThreadPoolExecutor(1) as elsewhere:  # Playwright's own loop runs in this thread
        return elsewhere.submit(lambda: asyncio.run(ask())).result()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"serial": "P1", "software": True}, "software is for a browser of this machine, and serial names a phone's"),
        ({"server": "127.0.0.1:5037"}, "adb and server are a phone's; give its serial, too"),
        ({"serial": "P1", "server": "far:5037"}, "through an adb server of this machine only"),
    ],
)
def test_rows_that_contradict_themselves(tiny_onnx: Path, tmp_path: Path, row: dict[str, Any], message: str) -> None:
    lab = tmp_path / "lab.toml"
    lab.write_text(lab_file("phone", {"transport": "browser"} | row))
    done = CliRunner().invoke(main, ["run", str(tiny_onnx), "Hi", "--device", "phone", "--lab", str(lab)])
    assert done.exit_code == 2 and message in done.output, done.output


def test_what_a_browser_cannot_run_is_refused(tiny_onnx: Path, tiny_web_half: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["bundle", str(tiny_onnx), str(tmp_path / "site"), "--for", "web"])
    assert done.exit_code == 2 and "export it with --target web" in done.output
    lab = software_browser(tmp_path)
    for artifact, message in (
        (tiny_onnx, "a browser needs --target web"),
        (tiny_web_half, "google swiftshader (software) has no float16 (shader-f16), which this model needs"),
    ):
        done = CliRunner().invoke(main, ["run", str(artifact), "Hi", "--device", "browser", "--lab", str(lab)])
        assert done.exit_code == 2 and message in done.output, done.output


@pytest.mark.real
def test_a_real_model_in_a_browser(playwright: Playwright, real_web: Callable[[str], Path], tmp_path: Path) -> None:
    """Two tokens: ci/gpu/browser_check.py has twenty answers, which take most of an hour in software."""
    artifact = real_web("float32")
    request = {"prompt": twenty_questions()[0], "max_new_tokens": 2, "ignore_stop_ids": True}
    with (
        served_folder(bundle(artifact, tmp_path / "site")) as address,
        browser_context(playwright, tmp_path / "profile") as context,
    ):
        page = context.new_page()
        page.goto(f"{address}/README.md")
        (events,) = generate(page, request)
    assert [event["id"] for event in events[:-1]] == greedy(artifact, GenerateRequest(**request))  # type: ignore[arg-type]
