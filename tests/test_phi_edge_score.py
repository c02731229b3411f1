"""`phi-edge score`, through the command line's door, on the tiny model."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import TINY

from devices.errors import DeviceError
from export.artifact import open_artifact
from export.pipeline import export_model
from export.request import AdapterChoice, ExportRequest
from export.texts import CALIBRATION, HELD_OUT
from export.texts import QUESTIONS as QUESTIONS_FILE
from export.texts.documents import read_documents
from export.verify.score.questions import read_questions
from phi_edge.main import main

QUESTIONS = (
    '{"question": "How many grams are 7 kilograms?", "answers": ["7000"], "kind": "units"}\n'
    '{"question": "How many grams are 7 kilograms?", "answers": ["700"]}\n'
)


@pytest.fixture(scope="module")
def tiny_fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a float ONNX artifact."""
    out = tmp_path_factory.mktemp("tiny") / "fp32"
    return export_model(ExportRequest(checkpoint="tiny", out=out, target="cpu", scheme="fp32")).folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the tiny model's held-out text, without its control tokens: in a text they are plain characters."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    plain = re.sub(r"<\|\w+\|>", "", (TINY / "held_out.txt").read_text(encoding="utf-8"))
    file.write_text(plain[:7000], encoding="utf-8")
    return file


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text(QUESTIONS, encoding="utf-8")
    return file


def score(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["score", *map(str, arguments)])


def scored(*arguments: object) -> dict[str, Any]:
    result = score(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def test_a_float_artifact_loses_nothing(tiny_fp32: Path, text: Path, questions: Path) -> None:
    found = scored(tiny_fp32, "--against", "tiny", "--text", text, "--questions", questions)
    assert found["kl"]["value"] < 1e-6
    assert found["top1_agreement"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["perplexity_ratio"]["value"] == pytest.approx(1, abs=1e-5)
    assert found["perplexity"]["low"] < found["perplexity"]["value"] < found["perplexity"]["high"]
    assert found["reference"]["kl_over"] == "vocabulary"
    assert found["questions"]["kinds"] == {"units": {"asked": 1, "right": 1}, "other": {"asked": 1, "right": 0}}
    assert found["exact_match"]["value"] == 0.5
    assert found["artifact"]["digest"] == open_artifact(tiny_fp32).manifest.digest()


def test_perplexity_is_that_of_transformers(tiny_fp32: Path, text: Path, questions: Path) -> None:
    """Blocks of 256 tokens; the first 32 of each are read and not predicted."""
    import torch
    from transformers import AutoTokenizer, Phi3ForCausalLM

    found = scored(tiny_fp32, "--text", text, "--questions", questions)
    ids = AutoTokenizer.from_pretrained(TINY)(text.read_text(encoding="utf-8"))["input_ids"]
    model = Phi3ForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    loss, predicted = 0.0, 0
    for start in range(0, len(ids), 256):
        block = torch.tensor([ids[start : start + 256]])
        if block.shape[1] < 32 + 16:
            continue
        with torch.inference_mode():
            logs = model(block).logits[0].double().log_softmax(-1)
        loss -= float(logs[31:-1].gather(1, block[0, 32:, None]).sum())
        predicted += block.shape[1] - 32
    assert found["text"]["scored_tokens"] == predicted
    assert found["perplexity"]["value"] == pytest.approx(math.exp(loss / predicted), rel=1e-5)


def test_int4_against_the_float_artifact(tiny_onnx: Path, tiny_fp32: Path, text: Path, questions: Path) -> None:
    against_artifact = scored(tiny_onnx, "--against", tiny_fp32, "--text", text, "--questions", questions)
    against_checkpoint = scored(tiny_onnx, "--against", "tiny", "--text", text, "--questions", questions)
    assert against_artifact["kl"]["value"] == pytest.approx(against_checkpoint["kl"]["value"], rel=1e-3)
    assert against_artifact["reference"]["digest"] == open_artifact(tiny_fp32).manifest.digest()
    kl = against_checkpoint["kl"]
    assert 0 < kl["low"] < kl["value"] < kl["high"]


def test_tokens_are_taken_from_the_whole_text(tiny_onnx: Path, text: Path, questions: Path) -> None:
    found = scored(tiny_onnx, "--text", text, "--questions", questions, "--tokens", 500)
    assert 224 <= found["text"]["scored_tokens"] <= 3 * 224
    assert found["perplexity"]["low"] is None  # two or three blocks say nothing of their spread
    none = scored(tiny_onnx, "--questions", questions, "--tokens", 0)
    assert (none["text"], none["perplexity"], none["exact_match"]["value"]) == (None, None, 0.5)


def test_on_a_device(tiny_onnx: Path, text: Path, questions: Path, tmp_path: Path) -> None:
    """An agent in a process of its own gives the same figures; its KL is a lower bound."""
    (tmp_path / "lab.toml").write_text('[device.desk]\ntransport = "local"\n', encoding="utf-8")
    words = [tiny_onnx, "--against", "tiny", "--text", text, "--questions", questions, "--tokens", 600]
    here = scored(*words)
    there = scored(*words, "--device", "desk", "--lab", tmp_path / "lab.toml")
    assert there["device"] == {"name": "desk", "transport": "local"}
    assert there["reference"]["kl_over"] == "top 64 and the rest"
    for name in ("perplexity", "reference_perplexity", "top1_agreement", "exact_match"):
        assert there[name]["value"] == pytest.approx(here[name]["value"], rel=1e-4), name
    assert 0.5 * here["kl"]["value"] < there["kl"]["value"] <= here["kl"]["value"] * 1.001


def test_what_people_see(tiny_onnx: Path, text: Path, questions: Path) -> None:
    result = score(tiny_onnx, "--against", "tiny", "--text", text, "--questions", questions)
    assert result.exit_code == 0
    names = [line[2:19].strip() for line in result.stdout.splitlines()[1:]]
    assert names == ["perplexity", "its ratio", "KL", "top-1 agreement", "exact match"]
    assert "1 of 2 in questions.jsonl" in result.stdout


def test_the_texts_that_ship(tiny_onnx: Path) -> None:
    found = scored(tiny_onnx, "--tokens", 700)
    assert found["text"]["name"] == "held_out.jsonl"
    assert found["questions"]["name"] == "questions.jsonl"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short.txt", b"Two words.", "tokens, and one block is 256; give a longer text"),
        ("utf16.txt", "Text. ".encode("utf-16") * 400, "is not UTF-8 (byte 0: invalid start byte); save it as UTF-8"),
        ("lines.jsonl", b'{"text": "a"}\nnot json\n', "lines.jsonl: line 2: is not JSON"),
        ("keys.jsonl", b'{"txt": "a"}\n', "line 1: has the keys txt; give one of text and messages"),
        ("role.jsonl", b'{"messages": [{"role": "boss", "content": "a"}]}\n', "messages has the role 'boss'"),
    ],
)  # fmt: skip
def test_a_text_that_cannot_be_read(tiny_onnx: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    result = score(tiny_onnx, "--text", tmp_path / name)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "", "answers": ["a"]}', "line 2: question is ''"),
        ('{"question": "a", "answers": "b"}', "line 2: answers is 'b'"),
        ('{"question": "a", "answers": ["b"], "knd": "c"}', "line 2: unknown key 'knd'"),
        ("[]", "line 2: is a list"),
    ],
)
def test_questions_that_cannot_be_read(tiny_onnx: Path, tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "a", "answers": ["b"]}\n' + line + "\n", encoding="utf-8")
    result = score(tiny_onnx, "--questions", file)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_a_question_that_does_not_fit_is_found_first(tiny_onnx: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(QUESTIONS + json.dumps({"question": "a b " * 5000, "answers": ["c"]}) + "\n", encoding="utf-8")
    result = score(tiny_onnx, "--questions", file)
    assert result.exit_code == 2, result.output
    assert re.search(
        r"questions\.jsonl: question 3 has \d+ tokens as a prompt, and the artifact a context", result.stderr
    )
    assert "perplexity" not in result.stdout


def test_a_reference_needs_a_text(tiny_onnx: Path, text: Path) -> None:
    for option in (["--against", tiny_onnx], ["--text", text]):
        result = score(tiny_onnx, "--tokens", 0, *option)
        assert (result.exit_code, "--tokens 0 asks only the questions" in result.stderr) == (2, True), result.stderr


def test_json_lines_are_known_by_their_first_line(tiny_onnx: Path, tmp_path: Path, text: Path) -> None:
    """Whatever the file's name is, and out of a pipe, which has none."""
    lines = json.dumps({"text": text.read_text(encoding="utf-8")}) + "\n"
    found = []
    for name in ("lines.jsonl", "lines.JSON", "lines"):
        (tmp_path / name).write_text(lines, encoding="utf-8")
        found.append(scored(tiny_onnx, "--text", tmp_path / name, "--tokens", 500)["perplexity"])
    assert found[0] == found[1] == found[2] == scored(tiny_onnx, "--text", text, "--tokens", 500)["perplexity"]


def test_the_figures_are_printed_where_the_file_cannot_be_written(
    tiny_onnx: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DeviceError("s.json: cannot be written (No space left on device)")

    monkeypatch.setattr("phi_edge.verbs.score.write_text", full)
    result = score(tiny_onnx, "--text", text, "--tokens", 500, "--json", tmp_path / "s.json")
    assert result.exit_code == 2 and "perplexity" in result.stdout and "No space left" in result.stderr


def test_another_vocabulary_is_refused(tiny_onnx: Path, tmp_path: Path, text: Path, questions: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(TINY, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"][-1]["content"] = "<|another|>"
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    result = score(tiny_onnx, "--against", other, "--text", text, "--questions", questions)
    assert (result.exit_code, "different tokenizers" in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize("kinds", [["prose"] * 40, [f"kind {place // 2}" for place in range(40)]])
def test_intervals_cover(kinds: list[str]) -> None:
    """Of 200 samples of correlated blocks, about 95 % of the intervals hold the true mean; with two of a kind, too."""
    from export.verify.score.figures import block_mean

    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        blocks = [generator.normal(generator.normal(1.0, 0.5), 1.0, 50) for _ in range(40)]
        figure = block_mean(blocks, kinds)
        assert figure.low is not None and figure.high is not None
        covered += figure.low <= 1.0 <= figure.high
    assert 180 <= covered <= 199


@pytest.mark.parametrize("tokens", [79, 511])
def test_the_manifest_s_interval_covers(tokens: int) -> None:
    """A data-free export's too, which has two blocks to go by."""
    from export.weights.loss import interval

    generator, covered = torch.Generator().manual_seed(2), 0
    for _ in range(400):
        low, high = interval(torch.randn(tokens, generator=generator) + 10)
        covered += low <= 10 <= high
    assert covered >= 368


def test_every_kind_alone_has_an_interval() -> None:
    from export.verify.score.figures import block_mean

    figure = block_mean([np.array([value, value]) for value in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)], list("abcdef"))
    assert figure.low is not None and figure.high is not None
    assert (figure.low < 3.0, figure.value, figure.high > 4.0) == (True, 3.5, True)


def test_a_share_has_wilson_s_interval() -> None:
    from export.verify.score.figures import wilson

    share = wilson(18, 20)
    assert (share.value, round(share.low or 0, 3), round(share.high or 0, 3)) == (0.9, 0.699, 0.972)
    assert wilson(3, 3).low == pytest.approx(0.4385, abs=1e-4)


# Phi-3-medium's own: no branch for a system message, which it drops.
MEDIUM_TEMPLATE = (
    "{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' + '\n' + message['content'] + "
    "'<|end|>' + '\n' + '<|assistant|>' + '\n'}}{% elif (message['role'] == 'assistant') %}{{message['content'] + "
    "'<|end|>' + '\n'}}{% endif %}{% endfor %}"
)


def test_conversations_that_the_template_refuses_are_left_out(text: Path, questions: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "medium"
    shutil.copytree(TINY, checkpoint)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = MEDIUM_TEMPLATE
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    artifact = export_model(ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", scheme="fp32")).folder
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is the lamp on?"}]
    documents = [{"text": text.read_text(encoding="utf-8")}, {"messages": system}, {"messages": system[1:]}]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    result = score(artifact, "--text", mixed, "--questions", questions)
    assert result.exit_code == 0, result.output
    assert "1 of its conversations left out, which the chat template refuses" in result.output
    assert scored(artifact, "--text", mixed, "--questions", questions)["text"]["left_out"] == 1
    mixed.write_text(json.dumps(documents[1]) + "\n", encoding="utf-8")
    refused = score(artifact, "--text", mixed, "--questions", questions)
    assert (refused.exit_code, "no place for system messages" in refused.stderr) == (2, True), refused.output


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # PEFT's
def test_a_merged_adapter_is_in_the_reference_too(text: Path, questions: Path, tmp_path: Path) -> None:
    from fakes.lora import Trained

    adapter = Trained(TINY, {"r": 4, "target_modules": ["qkv_proj"]}).save(tmp_path / "lora")
    request = ExportRequest(
        checkpoint="tiny", out=tmp_path / "out", scheme="fp32", adapters=(AdapterChoice(str(adapter), 0.5),)
    )
    artifact = export_model(request).folder
    words = (artifact, "--against", "tiny", "--text", text, "--questions", questions)
    without = score(*words)
    assert (without.exit_code, "give them: --adapter lora=0.5" in without.stderr) == (2, True), without.output
    assert scored(*words, "--adapter", f"{adapter}=0.5")["kl"]["value"] < 1e-6


def test_the_texts_share_no_question() -> None:
    """What is asked, and what is read, no export has seen with its answer."""
    seen = CALIBRATION.read_text(encoding="utf-8").casefold()
    for question in read_questions(QUESTIONS_FILE):
        assert json.dumps(question.question)[1:-1].casefold() not in seen, question.question
    calibrated = {json.dumps([each.text, each.turns], default=vars) for each in read_documents(CALIBRATION)}
    assert not calibrated & {json.dumps([each.text, each.turns], default=vars) for each in read_documents(HELD_OUT)}
