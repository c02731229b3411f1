"""Chat templates with what transformers offers, and added tokens that are shown: texts and ids are transformers'."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from export.artifact import Artifact, open_artifact
from export.template.language import writes_date
from runtimes.api import GenerateRequest, Message, TokenEvent
from runtimes.bundle.values import control_tokens, hidden_tokens, read_turns
from runtimes.engines.fake import fake_artifact
from runtimes.errors import EngineError, UnsupportedError
from runtimes.registry import open_runtime
from runtimes.text.tokenizer import Tokenizer

TINY = Path(__file__).parents[1] / "export" / "tiny"
TURNS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
READY = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
TEMPLATES = {
    "a date": "{{ strftime_now('%d %b %Y') }}\n" + TURNS + READY,
    "a date by a name": "{% set day = strftime_now('%Y') %}{{ day }}" + TURNS + READY,
    "break": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}" + READY,
    "continue": "{% for m in messages %}{% if m.content == '' %}{% continue %}{% endif %}<|user|>{{ m.content }}"
    "{% endfor %}" + READY,
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}" + READY,
    "tojson": "{{ {'é': [1, 'a<b']} | tojson }}{{ [1] | tojson(indent=2) }}" + TURNS + READY,
    "namespace": "{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"
    "{{ m.content }}{% endfor %}" + READY,
    "dict": "{% set d = dict(a=1) %}{{ d.a }}{{ dict.fromkeys(['x']) | tojson }}" + TURNS + READY,
    "the end token": TURNS + "{{ eos_token }}" + READY,
}
CONVERSATION = ["Is the lamp on?", "Yes.", "Turn it off, please."]


def with_template(folder: Path, template: str | None, **tokenizer: Any) -> Path:
    """The tiny tokenizer with another template, and with changes to tokenizer.json."""
    folder.mkdir()
    config = json.loads((TINY / "tokenizer_config.json").read_text())
    content = json.loads((TINY / "tokenizer.json").read_text()) | tokenizer
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_template_gives_transformers_ids(tmp_path: Path, name: str, turns: int) -> None:
    from transformers import AutoTokenizer

    if name == "break" and turns == 3:
        pytest.skip("it leaves a message out, which we refuse")
    folder = with_template(tmp_path / "tokenizer", TEMPLATES[name])
    roles = ["user", "assistant", "user"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, CONVERSATION[:turns], strict=False)]
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ours = Tokenizer(folder).encode_chat([Message(m["role"], m["content"]) for m in messages])  # type: ignore[arg-type]
    assert ours == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ namespace(_x=1) }}",
        "{% set ns = namespace(a=1) %}{% set ns.__class__ = 2 %}",
        "{{ dict.__class__ }}{{ x.y }}",
    ],
)
def test_a_template_does_not_leave_its_sandbox(tmp_path: Path, template: str) -> None:
    tokenizer = Tokenizer(with_template(tmp_path / "tokenizer", template + TURNS))
    with pytest.raises(Exception, match="refuses these messages"):
        tokenizer.encode_chat([Message("user", "Hello")])


def test_a_template_that_cannot_be_read_blocks_chat_alone(tmp_path: Path) -> None:
    artifact = fake_artifact(tmp_path / "artifact")
    config = artifact.folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": "{% for"}))
    tokenizer = Tokenizer(artifact.folder)
    assert tokenizer.has_template and tokenizer.encode_prompt("Hello")
    with pytest.raises(EngineError, match=r"cannot be read .* give `prompt` or `token_ids`"):
        tokenizer.encode_chat([Message("user", "Hello")])


@pytest.mark.parametrize(("name", "dated"), [("a date", True), ("a date by a name", True), ("tojson", False)])
def test_an_app_cannot_write_the_date(tmp_path: Path, name: str, dated: bool) -> None:
    assert writes_date(TEMPLATES[name]) == dated
    if dated:
        artifact = fake_artifact(tmp_path / "artifact")
        config = artifact.folder / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": TEMPLATES[name]}))
        with pytest.raises(UnsupportedError, match="writes the date"):
            read_turns(artifact)


ADDED = ["<think>", "</think>", "<tool_call>", "<|tool_call|>", "answer:", "<|hidden|>", "<|named|>", "<|other|>"]
SPECIAL = {"<|hidden|>"}


@pytest.fixture
def added(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The tiny tokenizer with added tokens, of which some are special: in tokenizer.json, or by its config in one of
    the ways of `named_by`."""
    content = json.loads((TINY / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"] += [
        {"id": 760 + number, "content": text, "special": text in SPECIAL, **flags} for number, text in enumerate(ADDED)
    ]
    folder = with_template(tmp_path / "tokenizer", None, added_tokens=content["added_tokens"])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= named_by(getattr(request, "param", "name"), flags)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def named_by(way: str, flags: dict[str, bool]) -> dict[str, Any]:
    table = {"766": {"content": "<|named|>", "special": way != "a table's other", **flags}}
    ways: dict[str, dict[str, Any]] = {
        "name": {"mask_token": "<|named|>"},
        "object": {"mask_token": {"content": "<|named|>", "special": True, "__type": "AddedToken", **flags}},
        "extra name": {"extra_special_tokens": {"named_token": "<|named|>"}},
        "list": {"additional_special_tokens": ["<|named|>"]},
        "table": {"added_tokens_decoder": table},
        "table and name": {"added_tokens_decoder": table, "mask_token": "<|named|>"},
        "a table's other": {"added_tokens_decoder": table, "mask_token": "<|other|>"},
    }
    return ways[way]


WAYS = ["name", "object", "extra name", "list", "table", "table and name", "a table's other"]


@pytest.mark.parametrize("added", WAYS, indirect=True)
def test_added_tokens_that_are_not_special_have_text_as_in_transformers(added: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer(added).bytes, AutoTokenizer.from_pretrained(added)
    for id in [*range(760, 768), *range(3), 755, 758]:
        assert ours[id].decode() == theirs.decode([id], skip_special_tokens=True)


def test_a_users_text_forges_none_of_them(added: Path) -> None:
    tokenizer = Tokenizer(added)
    ids = tokenizer.encode_prompt("".join(ADDED))
    assert not {760, 761, 762, 763, 765, 766, 767} & set(ids)


def test_what_an_app_refuses_and_what_it_shows(tiny_onnx: Path, added: Path, tmp_path: Path) -> None:
    """A message cannot contain a marker; an answer can."""
    folder = Path(shutil.copytree(tiny_onnx, tmp_path / "artifact"))
    shutil.copy(added / "tokenizer.json", folder / "tokenizer.json")
    shutil.copy(added / "tokenizer_config.json", folder / "tokenizer_config.json")
    artifact = Artifact(folder, open_artifact(tiny_onnx).manifest)
    assert {"<think>", "<|tool_call|>", "<|end|>", "</s>"} <= set(control_tokens(artifact))
    assert not {"<think>", "<|tool_call|>", "answer:"} & set(hidden_tokens(artifact))
    assert {"<|end|>", "<|endoftext|>", "<|hidden|>", "<|named|>"} <= set(hidden_tokens(artifact))


def test_genais_temperature_does_something(tiny_onnx: Path) -> None:
    """The folder's own settings leave every choice to the caller."""
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(tiny_onnx))
    tokenizer = genai.Tokenizer(model)
    prompt = tokenizer.encode("<|user|>\nTell me about the lamp.<|end|>\n<|assistant|>\n")

    def answer(**options: Any) -> tuple[int, ...]:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=48, **options)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        return tuple(int(id) for id in generator.get_sequence(0))

    drawn = {answer(do_sample=True, temperature=2.0, random_seed=seed) for seed in range(4)}
    assert len(drawn) > 1
    greedy = answer()
    runtime = open_runtime(tiny_onnx)
    request = GenerateRequest(token_ids=list(prompt), max_new_tokens=48 - len(prompt))
    ours = [event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)]
    runtime.close()
    assert list(greedy[len(prompt) :])[: len(ours)] == ours


def test_a_tokenizer_that_transformers_saved_again(tmp_path: Path) -> None:
    """Version 5 writes the template to a file, and another class."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(TINY)
    theirs.save_pretrained(tmp_path)
    before, after = Tokenizer(TINY), Tokenizer(tmp_path)
    for text in ("Hello é\n x", "<|user|> a </s>", " lead"):
        assert after.encode_prompt(text) == before.encode_prompt(text)
    messages = [Message("user", "Hello")]
    assert after.encode_chat(messages) == before.encode_chat(messages)
    assert [after.bytes[id] for id in range(760)] == [before.bytes[id] for id in range(760)]
