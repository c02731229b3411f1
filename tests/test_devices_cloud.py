"""A model that a service runs: bench, score, run, report and doctor over local servers of the two protocols."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from devices.measure.measurement import read_measurement
from devices.measure.validity import doubts, problems
from fakes.agent import fake_agent
from fakes.anthropic_server import KEY, PROMPT_TOKENS, FakeAnthropic, fake_anthropic
from fakes.measurement import fake_measurement
from fakes.served import served
from phi_edge.main import main
from phi_edge.serve.app import Settings
from runtimes.engines.fake import fake_artifact
from runtimes.registry import open_runtime

QUESTIONS = (
    '{"question": "How many grams are 7 kilograms?", "answers": ["7000"], "kind": "units"}\n'
    '{"question": "How many grams are 8 kilograms?", "answers": ["8000"], "kind": "units"}\n'
)
SMALL = ["--reps", "2", "--generate-tokens", "8"]


@pytest.fixture
def claude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAnthropic]:
    """A folder whose lab.toml has a service behind the messages protocol, and its key in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKE_KEY", KEY)
    with fake_anthropic() as fake:
        (tmp_path / "lab.toml").write_text(
            '[device.claude]\ntransport = "anthropic"\nmodel = "haiku"\nkey_env = "FAKE_KEY"\n'
            f'base_url = "{fake.url}"\n'
            "price = {input_usd_per_million = 1.0, output_usd_per_million = 5.0}\n"
        )
        yield fake


@pytest.fixture
def ours(tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder whose lab.toml has our own `phi-edge serve` as a service behind chat completions."""
    monkeypatch.chdir(tmp_path)
    with served(open_runtime(tiny_onnx), Settings(model="tiny")) as server:
        (tmp_path / "lab.toml").write_text(
            f'[device.ours]\ntransport = "openai"\nmodel = "tiny"\nbase_url = "{server.url}/v1"\n'
        )
        yield server.url


def phi_edge(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(*words: object) -> str:
    """The one line of a command that could not do its work."""
    result = phi_edge(*words)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    return result.stderr.splitlines()[-1]


def test_bench_of_the_messages_protocol(claude: FakeAnthropic) -> None:
    result = phi_edge("bench", "--device", "claude", *SMALL, "--out", "m.json")
    assert result.exit_code == 0, result.output
    measurement = read_measurement(Path("m.json"))
    assert problems(measurement) == []
    assert doubts(measurement) == ["its stream brings 2.0 tokens a piece; inter-token times are those between pieces"]
    assert measurement.artifact.service is not None and measurement.artifact.service.url == claude.url
    assert measurement.artifact.artifact_bytes is None
    assert measurement.versions["model"] == "haiku-20260101"
    for repetition in measurement.repetitions:
        run = repetition.run
        assert (run.prompt_tokens, run.completion_tokens, len(run.piece_at_s)) == (PROMPT_TOKENS, 8, 4)
        assert run.first_token_s is not None and 0 < run.first_token_s == run.piece_at_s[0]
        assert len(repetition.warmups) == 1
    prompts = [body["messages"][0]["content"] for body in claude.asked]
    assert len(set(prompts)) == len(prompts) == 4  # no service has one in its cache
    assert {body["max_tokens"] for body in claude.asked} == {8}


def test_bench_of_chat_completions(ours: str) -> None:
    result = phi_edge("bench", "--device", "ours", *SMALL, "--out", "m.json")
    assert result.exit_code == 0, result.output
    measurement = read_measurement(Path("m.json"))
    assert (measurement.artifact.name, measurement.artifact.format) == ("tiny", "openai")
    for repetition in measurement.repetitions:
        assert repetition.run.prompt_tokens > 10 and repetition.run.completion_tokens >= 1
        assert repetition.run.piece_at_s[-1] == repetition.run.last_token_s


def test_an_artifact_and_a_service_side_by_side(claude: FakeAnthropic, tmp_path: Path) -> None:
    local = tmp_path / "local.json"
    local.write_text(fake_measurement().to_json())
    (tmp_path / "questions.jsonl").write_text(QUESTIONS)
    assert phi_edge("bench", "--device", "claude", *SMALL, "--out", "m.json").exit_code == 0
    result = phi_edge("score", "--device", "claude", "--questions", "questions.jsonl", "--json", "s.json")
    assert result.exit_code == 0, result.output
    assert "1 of 2 in questions.jsonl" in result.stdout
    result = phi_edge("report", local, "m.json", "s.json", "--html", "r.html", "--json", "r.json", "--markdown")
    assert result.exit_code == 0, result.output
    rows = {line.split("|")[1].strip(): line.split("|")[2:4] for line in result.stdout.splitlines() if line[:1] == "|"}
    assert rows["Cost of 1,000 answers"] == [" not measured ", " 0.170 USD "]
    assert rows["Exact match"][1].startswith(" 50.0 %")
    assert rows["Artifact size"] == [" 2.50 MB ", " not measured "]
    assert rows["Leaves the device"] == [" nothing ", f" every prompt and answer, to {claude.url} "]
    content = json.loads((tmp_path / "r.json").read_text())["measurements"]
    assert [each["leaves_the_device"] for each in content] == ["nothing", f"every prompt and answer, to {claude.url}"]
    cost = (PROMPT_TOKENS * 1.0 + 8 * 5.0) / 1000
    assert content[1]["metrics"]["cost_per_1000_answers_usd"]["value"] == pytest.approx(cost)
    page = (tmp_path / "r.html").read_text()
    assert "Leaves the device" in page and "a service; every prompt and answer goes to" in page


def test_one_command_measures_artifacts_and_services(claude: FakeAnthropic, tmp_path: Path) -> None:
    fake_artifact(tmp_path / "a")
    with (tmp_path / "lab.toml").open("a") as lab:
        lab.write(f"[device.desk]\nagent = {json.dumps(fake_agent())}\n")
    words = ["--device", "desk", "--device", "claude", "--prompt-tokens", "9", *SMALL]
    result = phi_edge("bench", tmp_path / "a", *words, "--out-dir", "night")
    assert (result.exit_code, result.stdout.split()) == (0, ["night/a-desk.json", "night/claude.json"]), result.output


def test_run_asks_a_service(claude: FakeAnthropic) -> None:
    result = phi_edge("run", "How many grams//are 7 kg?", "--device", "claude", "--system", "Be short.")
    assert result.exit_code == 0, result.output
    assert result.stdout == "7000\n"
    assert f"{PROMPT_TOKENS} + 3 tokens, eos" in result.stderr
    assert claude.asked[0]["system"] == "Be short."
    assert claude.asked[0]["messages"] == [{"role": "user", "content": "How many grams//are 7 kg?"}]


def test_run_asks_our_own_server(ours: str) -> None:
    result = phi_edge("run", "Hello", "--device", "ours", "--max-new-tokens", "4", "--json")
    assert result.exit_code == 0, result.output
    *tokens, done = map(json.loads, result.stdout.splitlines())
    assert done["type"] == "done" and done["usage"]["completion"] >= 1
    assert {token["id"] for token in tokens} <= {-1}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "Hello", "--seed", "7"], "a service has no seed"),
        (["run", "Hello", "--top-k", "7"], "a service has no top_k"),
        (["run", "Hello", "--lora", "x"], "a service has no adapter"),
        (["run", "Hello", "--deadline", "3"], "a service has no deadline_s"),
        (["run", "Hello", "--temperature", "1"], "takes no temperature"),
        (["run", "artifact", "Hello"], "give the prompt alone"),
        (["run", "Hello", "--raw"], "give the prompt alone"),
        (["score", "artifact"], "leave ARTIFACT, --against, --adapter, --text and --threads out"),
        (["score", "--against", "tiny"], "leave ARTIFACT, --against, --adapter, --text and --threads out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_service_cannot_do_is_refused_in_one_line(claude: FakeAnthropic, words: list[str], said: str) -> None:
    assert said in refused(*words, "--device", "claude")
    assert claude.asked == []


def test_artifacts_and_services_are_not_mixed_up(claude: FakeAnthropic, tmp_path: Path) -> None:
    fake_artifact(tmp_path / "a")
    out = ["--out", "m.json"]
    assert "leave a out" in refused("bench", "a", "--device", "claude", *out)
    assert "ARTIFACT is missing, and device local needs one" in refused("bench", *out)
    assert "ARTIFACT is missing" in refused("score")
    said = refused("bench", "--device", "claude", "--against", "a", *out)
    assert "--against compares two artifacts" in said


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("counts", "reported 'many' input tokens"),
        ("cut", "stopped before its end"),
        ("busy", "429"),
    ],
)
def test_a_service_that_fails_is_one_line_and_no_file(claude: FakeAnthropic, broken: str, said: str) -> None:
    claude.broken = broken
    assert said in refused("bench", "--device", "claude", *SMALL, "--out", "m.json")
    assert not Path("m.json").exists()


def test_a_wrong_key_and_none(claude: FakeAnthropic, monkeypatch: pytest.MonkeyPatch) -> None:
    assert phi_edge("doctor", "claude").stdout.count(f"{claude.url} answers") == 1
    monkeypatch.setenv("FAKE_KEY", "sk-other")
    assert "invalid key" in refused("run", "Hello", "--device", "claude")
    monkeypatch.delenv("FAKE_KEY")
    assert "the environment variable FAKE_KEY has none" in refused("run", "Hello", "--device", "claude")
    result = phi_edge("doctor", "claude")
    assert result.exit_code == 1 and "FAKE_KEY" in result.stdout


def test_a_service_that_is_not_there(claude: FakeAnthropic, tmp_path: Path) -> None:
    row = '[device.gone]\ntransport = "openai"\nmodel = "x"\nbase_url = "http://127.0.0.1:9/v1"\n'
    (tmp_path / "lab.toml").write_text(row)
    assert "http://127.0.0.1:9/v1" in refused("bench", "--device", "gone", *SMALL, "--out", "m.json")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('model = "x"', "lacks key_env"),
        ('key_env = "K"', "lacks 'model'"),
        ('model = "x"\nbase_url = "ftp://x"', "give http:// or https://"),
        ('model = "x"\nbase_url = "https://me:pw@x"', "give http:// or https://"),
        ('model = "x"\nkey_env = "K"\nprice = {input_usd_per_million = -1, output_usd_per_million = 1}', "dollars"),
        ('model = "x"\nkey_env = "K"\nsend_temperature = false', "send_temperature"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab.toml").write_text(f'[device.it]\ntransport = "anthropic"\n{row}\n')
    assert said in refused("run", "Hello", "--device", "it")
