"""Five natural mistakes at each verb: each gets one line that says what to do, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fakes.measurement import fake_measurement
from fakes.score import fake_score
from phi_edge.main import VERBS, main
from runtimes.engines.fake import fake_artifact

# verb -> what is typed after it -> what the answer says to do
MISTAKES: dict[str, dict[str, str]] = {
    "export": {
        "-m tiny out": "the model comes without an option: phi-edge export tiny",
        "tiny out --quantize int4": "use --scheme",
        "tiny out --context 4k": "write the number out, such as 4096",
        "tiny weights.gguf/out": "weights.gguf: is a file, and",
        "tiny out --max-file-size 1": "alone has 0.2 MB; allow that much",
        "tiny out --format gguf --max-file-size 1GB": "splits ONNX weights, and gguf has one file; leave it out",
        "tiny out --target gpu": "use cuda for NVIDIA's cards",
        "tiny out --scheme int4": "leave it out for 4 bits",
        "tiny full": "full: is not empty; give a new folder",
        "weights.gguf out": "give the folder that has config.json and *.safetensors",
        "microsoft/Phi-3-mini": "an example: phi-edge export tiny my-artifact",
    },
    "check": {
        "tiny": "export it first: phi-edge export tiny my-artifact",
        "checkpoint": "it is a checkpoint; export it first: phi-edge export checkpoint my-artifact",
        "art/manifest.json": "is a file of an artifact; give its folder, art",
        "art --json r.json": "give --against CHECKPOINT too",
        "art --reference tiny": "use --against",
    },
    "diff": {
        "art": "an example: phi-edge diff before after",
        "tiny art": "export it first: phi-edge export tiny my-artifact",
        "checkpoint art": "it is a checkpoint; export it first: phi-edge export checkpoint my-artifact",
        "art art -p hi": 'use --run "a question"',
        "art art -o d.json": "use --json",
        "art art art": "unexpected words: art",
    },
    "run": {
        "microsoft/Phi-3-mini-4k-instruct hi": "phi-edge export microsoft/Phi-3-mini-4k-instruct my-artifact",
        "checkpoint hi": "it is a checkpoint; export it first: phi-edge export checkpoint my-artifact",
        "art Turn on the lamp": "put the prompt in quotes: phi-edge run art 'Turn on the lamp'",
        "art hi --temp 0.5": "use --temperature",
        "art hi --deadline 2m": "give seconds, as a number alone, such as 120",
        "hi art": "art is an artifact, and comes first: phi-edge run art hi",
        "art hi -n 20": "use --max-new-tokens",
        "art": "no prompt; give one, or - to read it from stdin",
        "art hi --device pi": "unknown device 'pi'; known: local",
    },
    "score": {
        "tiny": "export it first: phi-edge export tiny my-artifact",
        "art --dataset wiki.txt": "use --text",
        "art --text nowhere.txt": "nowhere.txt",
        "art -o s.json": "use --json",
        "art --tokens many": "--tokens: 'many' is no whole number",
    },
    "bench": {
        "art": "an example: phi-edge bench my-artifact --out here.json",
        "art -o m2.json": "use --out",
        "art --out nowhere/m.json": "make it first",
        "phi3 --out m2.json": "phi3: no such folder; give the folder that `phi-edge export` wrote",
        "art --out m2.json --device pi": "unknown device 'pi'; known: local",
    },
    "report": {
        "": "an example: phi-edge report phone.json --html phone.html",
        "art": "art",
        "art/manifest.json": "is the manifest of an artifact; give a file of `phi-edge bench`",
        "nowhere.json": "nowhere.json",
        "m.json -o page.html": "use --html FILE, or --json FILE",
        "m.json --html nowhere/page.html": "make it first",
    },
    "gate": {
        "m.json": "give --budgets FILE or --baseline FILE",
        "m.json --budget b.toml": "use --budgets",
        "m.json --budgets nowhere.toml": "nowhere.toml",
        "m.json --budgets typo.toml": "did you mean 'max_ttft_s'?",
        "m.json m.json --baseline m.json": "give one, or a folder as the baseline",
    },
    "lab list": {
        "pi5": "no such file; give a lab file; one device is examined by phi-edge doctor NAME",
        "--device pi5": "leave it out: it shows all",
        "--lab lab.toml": "give the lab file without an option",
        "m.json": "is not TOML",
        "typo.toml": "unknown key 'budget'",
    },
    "lab run": {
        "plan.toml": "an example: phi-edge lab run night.toml --out-dir night",
        "plan.toml --out night": "use --out-dir",
        "plan.toml --out-dir night": "plan.toml",
        "art --device pi5": "PLAN names the devices",
        "typo.toml --out-dir night": "unknown key 'budget'",
    },
    "history": {
        "": "an example: phi-edge history all-nights night",
        "m.json": "is no history and not empty; give a new folder",
        "full": "is no history and not empty; give a new folder",
        "nights --html page.html": "is no history yet; add measurements",
        "nights --metric ttft_s": "use --sql QUERY",
    },
    "bundle": {
        "art app": "an example: phi-edge bundle my-artifact my-app --for android",
        "art app --target android": "use --for",
        "art app --for andriod": "did you mean android?",
        "art art/app --for android": "art/app: is inside the artifact",
        "art app --for ios": "nothing to bundle: llama.cpp runs an artifact of --format gguf there",
        "art full --for android": "full: is there already; give a new folder",
        "checkpoint app --for android": "export it first: phi-edge export checkpoint my-artifact",
    },
    "serve": {
        "tiny": "export it first: phi-edge export tiny my-artifact",
        "checkpoint": "it is a checkpoint; export it first: phi-edge export checkpoint my-artifact",
        "-m art": "the model comes without an option: phi-edge serve art",
        "art --port web": "--port: 'web' is no whole number",
        "art --api-key secret": "did you mean --api-key-env?",
    },
    "doctor": {
        "pi5": "unknown device 'pi5'; known: local",
        "--device pi5": "give the device's name without an option: phi-edge doctor NAME",
        "pi5 phone": "unexpected words: phone",
        "pi5 --lab nowhere.toml": "nowhere.toml",
        "--all": "give a device's name: it examines one at a time",
    },
    "demo": {
        "tiny": "unexpected words: tiny",
        "--out full": "full: is not empty and was not made by a demo; give another --out",
        "-o demo": "use --out",
        "--target android": "leave it out: it shows all",
        "--out weights.gguf": "weights.gguf: is not a folder; give another --out",
    },
}
# What is typed in the place of a verb -> what the answer says to do
NOT_A_VERB = {
    "pull phi3": "`phi-edge export HUB_ID FOLDER` downloads a checkpoint and makes an artifact",
    "ls": "artifacts are plain folders",
    "exprot tiny out": "did you mean export?",
    "chat art": "`phi-edge run FOLDER` starts a conversation",
    "art": "a verb comes first: phi-edge run art",
    "checkpoint out": "a verb comes first: phi-edge export checkpoint FOLDER",
    "microsoft/Phi-3-mini-4k-instruct": "a verb comes first: phi-edge export microsoft/Phi-3-mini-4k-instruct FOLDER",
    "benchmark art": "`phi-edge bench FOLDER --out FILE` measures",
    "quantize tiny": "`phi-edge export CHECKPOINT FOLDER --scheme NAME` quantises",
    "--run art": "write the verb plainly: phi-edge run",
    "-v": "`phi-edge --version`",
    "help run": "`phi-edge VERB --help`",
}
CASES = [(f"{verb} {words}".strip(), says) for verb, all in MISTAKES.items() for words, says in all.items()]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as a new user may have it."""
    monkeypatch.chdir(tmp_path)
    fake_artifact(tmp_path / "art")
    for folder in ("full", "checkpoint"):
        (tmp_path / folder).mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    (tmp_path / "weights.gguf").write_text("GGUF")
    (tmp_path / "m.json").write_text(fake_measurement().to_json())
    (tmp_path / "s.json").write_text(fake_score(fake_measurement()).to_json())
    (tmp_path / "typo.toml").write_text("[[budget]]\nmatch = {target = 'cpu'}\nmax_ttft = 1\n")


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(("words", "says"), [*CASES, *NOT_A_VERB.items()], ids=lambda value: str(value)[:40])
def test_a_mistake_gets_a_line_that_says_what_to_do(words: str, says: str) -> None:
    result = CliRunner().invoke(main, words.split(), prog_name="phi-edge")
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    *before, error = result.stderr.splitlines()
    assert error.startswith("Error: ") and before in ([], ["reading the checkpoint"]), result.stderr
    assert says in error


def test_there_are_five_for_each_verb() -> None:
    assert MISTAKES.keys() == VERBS.keys()
    assert min(map(len, MISTAKES.values())) >= 5


def test_the_short_version_option() -> None:
    assert CliRunner().invoke(main, ["-V"]).stdout.startswith("phi-edge 0.")
