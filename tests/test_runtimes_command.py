"""`phi-edge run`, through the command line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import phi_edge.verbs.run
from export.artifact import describe_files, seal
from phi_edge.main import main
from runtimes import Runtime, open_runtime
from runtimes.engines.engine import ANY_ADAPTER, EngineOpener, Graphics
from runtimes.engines.fake import FakeEngine, fake_artifact, fake_opener


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fake_artifact(tmp_path / "artifact").folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, fake_opener("Grüße 🎉!"))


def use(monkeypatch: pytest.MonkeyPatch, opener: EngineOpener) -> None:
    """The fake behind the command: its artifacts are not opened by their format."""

    def open_fake(artifact: Path, *, threads: int | None = None, graphics: Graphics = ANY_ADAPTER) -> Runtime:
        return open_runtime(artifact, threads=threads, engine=opener, graphics=graphics)

    monkeypatch.setattr(phi_edge.verbs.run, "open_runtime", open_fake)


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["run", *map(str, arguments)], input=stdin)


@pytest.mark.usefixtures("fake")
def test_text_goes_to_stdout_and_a_summary_to_stderr(folder: Path) -> None:
    result = run(folder, "Hello", "--raw")
    assert (result.exit_code, result.stdout) == (0, "Grüße 🎉!\n")
    assert result.stderr.startswith("5 + 13 tokens, eos; first token after 0.")
    assert "decode" in result.stderr and "peak memory" in result.stderr


@pytest.mark.usefixtures("fake")
def test_json_lines_are_events(folder: Path) -> None:
    result = run(folder, "Hello", "--raw", "--json", "--stop", "e 🎉")
    *tokens, done = map(json.loads, result.stdout.splitlines())
    assert {frozenset(token) for token in tokens} == {frozenset({"type", "id", "text", "at_s"})}
    assert "".join(token["text"] for token in tokens) == "Grüß"
    assert (done["type"], done["finish"], done["stop_string"]) == ("done", "stop", "e 🎉")
    counts = {"prompt": 5, "reused": 0, "prefilled": 5, "completion": 12, "proposed": 0, "accepted": 0}
    assert done["usage"] == counts
    assert result.stderr == ""


@pytest.mark.usefixtures("fake")
def test_chat_and_system_go_through_the_template(folder: Path) -> None:
    def prompt_tokens(*arguments: str) -> int:
        *_, done = run(folder, "Hi", "--json", *arguments).stdout.splitlines()
        count = json.loads(done)["usage"]["prompt"]
        assert isinstance(count, int)
        return count

    # <|system|> \n Be kind <|end|> \n <|user|> \n Hi <|end|> \n <|assistant|> \n
    asked = [["--raw"], [], ["--chat"], ["--system", "Be kind"], ["--chat", "--system", "Be kind"]]
    assert [prompt_tokens(*options) for options in asked] == [2, 8, 8, 19, 19]


@pytest.mark.usefixtures("fake")
def test_a_dash_reads_stdin(folder: Path) -> None:
    *_, done = run(folder, "-", "--raw", "--json", stdin="four").stdout.splitlines()
    assert json.loads(done)["usage"]["prompt"] == 4


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x" * 600, "--raw"], "the prompt has 600 tokens; a context of 512 takes at most 511"),
        (["Hello", "--top-p", "2"], "top_p is 2.0; allowed"),
        (["Hello", "--threads", "0"], "threads is 0; allowed: 1 to 1024"),
        (["Hello", "--system", "a", "--raw"], "--system is for a chat, and --raw gives"),
        ([], "no prompt; give one"),
        (["--chat"], "no prompt; give one"),
        (["--json"], "--json needs a prompt"),
        (["Turn", "on", "it's", "lamp"], "unexpected words: on it's lamp; put the prompt in quotes: phi-edge run "),
    ],
)
def test_the_user_s_fault_is_one_line_and_exit_2(folder: Path, arguments: list[str], message: str) -> None:
    result = run(folder, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {message}")
    assert result.stderr.count("\n") == 1


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    result = run(tmp_path, "Hello")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "has no manifest.json" in result.stderr


def test_a_file_of_an_artifact_is_not_the_artifact(folder: Path) -> None:
    result = run(folder / "tokenizer.json", "Hello")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"is a file of an artifact; give its folder, {folder}" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [("--chat", "no prompt; give one"), ("- --raw", "the prompt is -, and stdin is closed; give the prompt itself")],
)
def test_a_stdin_that_is_closed(tiny_onnx_short: Path, words: str, said: str) -> None:
    command = f"{sys.executable} -P -m phi_edge run {tiny_onnx_short} {words} <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert said in done.stderr


def test_an_engine_that_fails_ends_with_exit_2(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, lambda artifact, threads: FakeEngine(fail_at=7))
    result = run(folder, "Hello", "--raw")
    assert result.exit_code == 2
    assert "Error: the fake engine fails at position 7" in result.stderr


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}"], ids=["without", "with"])
def test_an_artifact_without_a_template_gets_the_prompt_as_it_is(
    tmp_path: Path, fake: None, template: str | None
) -> None:
    folder = fake_artifact(tmp_path / "artifact", chat_template=template).folder
    *_, done = run(folder, "four", "--json").stdout.splitlines()
    assert json.loads(done)["usage"]["prompt"] == 4
    result = run(folder, "four", "--system", "Be kind")
    assert result.exit_code == 2
    assert ("so there is no place for --system" in result.stderr) == (template is None)


def test_a_raw_prompt_that_ends_at_once_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, fake_opener(""))
    assert "it answers questions. Leave --raw out." in run(folder, "Hello", "--raw").stderr
    assert "--raw" not in run(folder, "Hello").stderr


@pytest.mark.usefixtures("fake")
def test_what_the_makers_suggest_is_noted(tmp_path: Path) -> None:
    made = fake_artifact(tmp_path / "artifact")
    (made.folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_p": 0.9}')
    files = describe_files(made.folder, [*made.manifest.files, "generation_config.json"])
    seal(made.folder, dataclasses.replace(made.manifest, files=files))
    assert "makers suggest temperature 0.6, top_p 0.9" in run(made.folder, "Hello").stderr
    assert "makers" not in run(made.folder, "Hello", "--temperature", "1").stderr


@pytest.mark.usefixtures("fake")
def test_it_is_in_the_help() -> None:
    assert "--max-new-tokens" in run("--help").stdout


def test_a_real_process_with_a_real_engine(tiny_onnx: Path) -> None:
    words = ["run", str(tiny_onnx), "Turn on", "--raw", "--max-new-tokens", "4", "--json"]
    command = [sys.executable, "-m", "phi_edge", *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    *tokens, done = map(json.loads, result.stdout.splitlines())
    assert done["usage"]["completion"] == len(tokens) <= 4
    assert result.stderr == ""
