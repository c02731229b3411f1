"""`phi-edge serve` at its edges: queue, cancelling, keys, hosts, bodies, the page, the command, a device."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from click.testing import CliRunner

from devices.drivers.table import open_device_runtime
from export.artifact import Artifact
from fakes.chromium import Page, chromium_page
from fakes.served import Served, served
from fakes.templates import TOOLS_TEMPLATE, WEATHER
from phi_edge.main import main
from phi_edge.serve.app import Settings
from phi_edge.serve.server import listen
from runtimes.engines.engine import Engine
from runtimes.engines.fake import FakeEngine, fake_artifact, fake_opener
from runtimes.registry import open_runtime

CHAT = "/v1/chat/completions"
LONG = "abcdefghij" * 40


def body(text: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}]} | fields


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """serve(script, **settings): a server of the fake engine."""
    with contextlib.ExitStack() as stack:

        def start(
            script: str = "Hello.", *, forward_s: float = 0.0, template: str | None = None, **settings: Any
        ) -> Served:
            folder = tmp_path / f"artifact-{time.monotonic_ns()}"
            fields = {} if template is None else {"chat_template": template}
            artifact = fake_artifact(folder, context_tokens=1024, **fields)  # type: ignore[arg-type]
            runtime = open_runtime(artifact, engine=fake_opener(script, forward_s=forward_s))
            return stack.enter_context(served(runtime, Settings(**({"model": "fake"} | settings))))

        yield start


def idle(server: Served) -> dict[str, Any]:
    """Wait until nothing runs or waits; the server's health."""
    until_s = time.monotonic() + 60
    while True:
        health: dict[str, Any] = httpx.get(f"{server.url}/health").json()
        if not health["running"] and not health["waiting"]:
            return health
        assert time.monotonic() < until_s, health
        time.sleep(0.02)


def test_a_full_queue_is_answered_429_with_a_time(serve: Callable[..., Served]) -> None:
    server = serve(LONG, forward_s=0.02, queue_limit=1)
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx.post(server.url + CHAT, json=body(max_tokens=50), timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    while httpx.get(f"{server.url}/health").json()["waiting"] < 1:
        time.sleep(0.01)
    refused = httpx.post(server.url + CHAT, json=body())
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(refused.headers["retry-after"]) >= 1
    for thread in threads:
        thread.join()
    assert answers == [200, 200]  # whoever waited was served


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_its_request(serve: Callable[..., Served], stream: bool) -> None:
    server = serve(LONG, forward_s=0.05)
    request = json.dumps(body(stream=stream)).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = [f"POST {CHAT} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        head += [f"Content-Length: {len(request)}", "", ""]
        client.sendall("\r\n".join(head).encode() + request)
        while not httpx.get(f"{server.url}/health").json()["running"]:
            time.sleep(0.01)
        if stream:
            assert b"200 OK" in client.recv(4096)
    idle(server)
    counters = httpx.get(f"{server.url}/metrics").text
    assert 'phi_edge_generations_total{finish="cancelled"} 1.0' in counters
    # Its 400 tokens were not generated: the next answer is there at once, and whole.
    assert httpx.post(server.url + CHAT, json=body(max_tokens=3)).json()["choices"][0]["message"]["content"] == "abc"


def test_fifty_clients_of_which_half_hang_up(serve: Callable[..., Served]) -> None:
    server = serve("The whole answer.", forward_s=0.002, queue_limit=64)
    threads = threading.active_count()

    async def ask(client: httpx.AsyncClient, number: int) -> str | None:
        fields = body(f"client {number}", stream=number % 4 < 2)
        if number % 2:
            with contextlib.suppress(httpx.HTTPError):
                async with asyncio.timeout(0.01 * (number % 7)):
                    await client.post(server.url + CHAT, json=fields)
            return None
        answer = await client.post(server.url + CHAT, json=fields)
        assert answer.status_code == 200, answer.text
        if not fields["stream"]:
            text: str = answer.json()["choices"][0]["message"]["content"]
            return text
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)

    async def quiet(client: httpx.AsyncClient, number: int) -> str | None:
        try:
            return await ask(client, number)
        except TimeoutError:
            return None

    async def main() -> list[str | None]:
        async with httpx.AsyncClient(timeout=60) as client:
            return await asyncio.gather(*(quiet(client, number) for number in range(50)))

    for _ in range(2):
        answers = asyncio.run(main())
        assert answers[::2] == ["The whole answer."] * 25
        idle(server)
    gc.collect()
    assert threading.active_count() <= threads + 1  # the resolver's
    until_s = time.monotonic() + 10
    while server.connections and time.monotonic() < until_s:
        time.sleep(0.05)
    assert server.connections == 0
    assert not [task for task in server.server.server_state.tasks if not task.done()]


def test_requests_share_their_common_prefix(serve: Callable[..., Served]) -> None:
    server = serve()
    texts = ["A long beginning that all share, then one", "A long beginning that all share, then two"]
    cached = [httpx.post(server.url + CHAT, json=body(text)).json()["usage"] for text in texts]
    assert cached[0]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert cached[1]["prompt_tokens_details"]["cached_tokens"] >= len("A long beginning that all share, then ")


def test_no_token_waits_for_an_acknowledgement() -> None:
    """Else the client's kernel keeps each second small packet back for 40 ms."""
    with (
        listen("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_key_is_asked_for(serve: Callable[..., Served]) -> None:
    server = serve(key="secret")
    for path in ("/v1/models", "/metrics", CHAT):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer secre"}):
            refused = httpx.request("POST" if path == CHAT else "GET", server.url + path, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    right = {"Authorization": "Bearer secret"}
    assert httpx.get(f"{server.url}/v1/models", headers=right).status_code == 200
    for path in ("/", "/page.css", "/chat.js", "/page.js", "/health"):
        assert httpx.get(server.url + path).status_code == 200


def test_other_sites_pages_cannot_call(serve: Callable[..., Served]) -> None:
    server = serve()
    rebound = httpx.get(f"{server.url}/v1/models", headers={"Host": "evil.example"})
    assert (rebound.status_code, "is not served" in rebound.text) == (403, True)
    plain = httpx.post(server.url + CHAT, content=json.dumps(body()), headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415
    assert "access-control-allow-origin" not in httpx.get(server.url).headers


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"model": "fake"}', 400),
        (b"\xff", 400),
        (b'{"a":' * 10_000, 400),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "a"}], "seed": 1e400}', 400),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "a"}], "max_tokens": "3"}', 400),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "a"}], "stream": 1}', 400),
        (b'{"model": "other", "messages": [{"role": "user", "content": "a"}]}', 404),
        (b" " * ((4 << 20) + 1), 413),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_wrong_body_is_refused_in_one_line(serve: Callable[..., Served], content: bytes, status: int) -> None:
    server = serve()
    answer = httpx.post(server.url + CHAT, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    message = answer.json()["error"]["message"]
    assert message and "\n" not in message and len(message) < 400


def test_a_host_that_is_none(serve: Callable[..., Served]) -> None:
    for settings in ({}, {"hosts": None}):  # None: any name, as with --host 0.0.0.0
        for host in ("[", "[::1", "a[b]"):
            answer = httpx.get(f"{serve(**settings).url}/v1/models", headers={"Host": host})
            assert (answer.status_code, "is no name and no address" in answer.text) == (400, True)


def test_a_client_that_leaves_in_its_body_leaves_no_traceback(
    serve: Callable[..., Served], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    head = [f"POST {CHAT} HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 99", "", ""]
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall("\r\n".join(head).encode() + b'{"model": ')
    until_s = time.monotonic() + 30
    while f'path="{CHAT}",status="400"' not in httpx.get(f"{server.url}/metrics").text:
        assert time.monotonic() < until_s
        time.sleep(0.02)
    assert not caplog.records


def test_letters_of_any_language(serve: Callable[..., Served]) -> None:
    server = serve("Grüße 模型 🎉 ST\u00d6P more", model="Größe 模型")
    (listed,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert httpx.get(f"{server.url}/v1/models/{listed['id']}").json() == listed
    fields = body("Ünïcode 😀 \u202e", model=listed["id"], stop=["STÖP"])
    for ensure_ascii in (True, False):
        content = json.dumps(fields, ensure_ascii=ensure_ascii).encode()
        answer = httpx.post(server.url + CHAT, content=content, headers={"Content-Type": "application/json"}).json()
        (choice,) = answer["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Grüße 模型 🎉 ", "stop")
    lines = httpx.post(server.url + CHAT, json=fields | {"stream": True}).text.splitlines()
    pieces = [json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines if "{" in line]
    assert "".join(pieces) == "Grüße 模型 🎉 "


def test_paths_and_methods_that_are_not_there(serve: Callable[..., Served]) -> None:
    server = serve()
    assert httpx.get(f"{server.url}/v1/embeddings").status_code == 404
    assert len(httpx.get(f"{server.url}/{'a' * 60_000}").content) < 500
    refused = httpx.delete(server.url + CHAT)
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_an_engine_that_fails_is_an_error_and_the_next_request_is_served(tmp_path: Path) -> None:
    def failing(artifact: Artifact, threads: int | None) -> Engine:
        return FakeEngine(fail_at=60, context_tokens=512)

    runtime = open_runtime(fake_artifact(tmp_path / "artifact"), engine=failing)
    with served(runtime, Settings(model="fake")) as server:
        failed = httpx.post(server.url + CHAT, json=body("x" * 100))
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "model_failed")
        stream = httpx.post(server.url + CHAT, json=body("x" * 100, stream=True))
        assert stream.status_code == 200 and "the fake engine fails" in stream.text.splitlines()[-2]
        assert httpx.post(server.url + CHAT, json=body("x", max_tokens=2)).status_code == 200


def test_a_call_is_held_back_and_other_text_streams(serve: Callable[..., Served]) -> None:
    call = '{"name": "weather", "arguments": {"city": "Oslo"}}'
    for script, calls in ((call, 1), ('{"name": "other"}', 0), ("Sunny.", 0)):
        server = serve(script, template=TOOLS_TEMPLATE)
        answer = httpx.post(server.url + CHAT, json=body(tools=[WEATHER], stream=True))
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        choices = [json.loads(line)["choices"][0] for line in lines]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        found = [each for choice in choices for each in choice["delta"].get("tool_calls", ())]
        assert (text, len(found)) == ("" if calls else script, calls)
        assert choices[-1]["finish_reason"] == ("tool_calls" if calls else "stop")
    refused = httpx.post(serve().url + CHAT, json=body(tools=[WEATHER]))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported")
    assert "no place for tools" in refused.text


def test_a_device_answers(tiny_onnx_short: Path) -> None:
    runtime = open_device_runtime(tiny_onnx_short, "local", lab=None, threads=1, say=print)
    with served(runtime, Settings(model="fake")) as server:
        fields = body("Turn off the lamp.", regex="(on|off)", logprobs=True, frequency_penalty=0.5)
        answer = httpx.post(server.url + CHAT, json=fields, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] in ("on", "off")


def test_the_command(tiny_onnx_short: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "phi_edge", "serve", str(tiny_onnx_short), "--port", "0", "--threads", "1"]
    environment = os.environ | {"KEY": "secret"}
    options = ["--name", "tiny", "--api-key-env", "KEY"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("serving tiny on http://127.0.0.1:"), line
        url = line.split()[3]
        port = url.rpartition(":")[2]
        listed = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer secret"}).json()
        assert listed["data"][0]["id"] == "tiny"
        taken = subprocess.run([*command[:5], "--port", port], capture_output=True, text=True, env=environment)
        assert taken.returncode == 2 and f"cannot listen on 127.0.0.1 port {port}" in taken.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(("key", "said"), [("", "is not set"), ("schlüssel", "beyond ASCII"), ("a b", "has a space")])
def test_a_key_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, said: str) -> None:
    monkeypatch.setenv("KEY", key)
    done = CliRunner().invoke(main, ["serve", str(fake_artifact(tmp_path / "a").folder), "--api-key-env", "KEY"])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "--api-key-env KEY: " in done.stderr and said in done.stderr


def test_schemathesis_finds_nothing(serve: Callable[..., Served], tmp_path: Path) -> None:
    """Bodies that the OpenAPI page allows or forbids, at every edge of it. A schema cannot express all that makes a
    request wrong (two fields that exclude each other), so a valid body may be refused; an invalid one may not pass."""
    server = serve(template=TOOLS_TEMPLATE)
    options = ["--seed", "1", "--max-examples", "5", "--phases", "coverage,fuzzing", "--no-color"]
    options += ["--exclude-checks", "positive_data_acceptance", "--generation-database", "none"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", *options]
    found = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr


def say(page: Page, text: str) -> None:
    """Send a message."""
    page.evaluate(f"document.getElementById('text').value = '{text}'; document.getElementById('form').requestSubmit()")


@pytest.mark.chromium
def test_the_page_in_a_browser(serve: Callable[..., Served], tmp_path: Path) -> None:
    server = serve("A streamed <b>answer</b>.", forward_s=0.02)
    with chromium_page(tmp_path / "profile") as page:
        page.open(server.url)
        page.wait_for("document.getElementById('model')?.textContent.startsWith('fake, context 1024')")
        say(page, "Hi")
        page.wait_for("document.querySelector('.assistant')?.textContent.length > 3")
        assert page.evaluate("!document.getElementById('stop').hidden")
        page.wait_for("document.getElementById('stop').hidden")
        assert page.evaluate("document.querySelector('.assistant').textContent") == "A streamed <b>answer</b>."
        assert page.evaluate("/^25 tokens, first after [0-9.]+ s, [0-9.]+ tokens\\/s$/.test(state.textContent)")
        # The second answer is stopped in the middle.
        say(page, "More")
        page.wait_for("document.querySelectorAll('.assistant')[1]?.textContent.length > 3")
        page.evaluate("document.getElementById('stop').click()")
        page.wait_for("state.textContent.endsWith(', stopped')")
        idle(server)
        # A new conversation begins in the middle of an answer, of which nothing is in it.
        say(page, "Third")
        page.wait_for("document.querySelectorAll('.assistant')[2]?.textContent.length > 3")
        page.evaluate("document.getElementById('clear').click()")
        page.wait_for("document.getElementById('stop').hidden")
        idle(server)
        page.evaluate("const ask = fetch; window.fetch = (path, options) => ask(path, window.asked = options)")
        say(page, "New")
        page.wait_for("document.getElementById('stop').hidden && document.querySelector('.assistant')?.textContent")
        assert page.evaluate("JSON.parse(window.asked.body).messages.map(({ content }) => content)") == ["New"]
        loaded = page.evaluate("performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin)")
        assert set(loaded) == {server.url}
        assert page.console == []
