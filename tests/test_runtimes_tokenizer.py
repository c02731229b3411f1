"""Tokeniser and chat template: transformers' ids for ordinary text, and a user's text never becomes a special token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runtimes import Message
from runtimes.engines.fake import CHAT_TEMPLATE, CONTROL_IDS, CONTROL_TOKENS, fake_artifact
from runtimes.errors import EngineError, RequestError, UnsupportedError
from runtimes.text.marks import Piece
from runtimes.text.stream import TextJoiner
from runtimes.text.template import ChatTemplate
from runtimes.text.tokenizer import Tokenizer

SHARED = Path(__file__).parents[2] / "shared" / "phi3"
LLAMA_STYLE = ("mini-4k", "mini-128k", "medium-4k", "phi-3.5-mini")
FOLDERS = (*LLAMA_STYLE, "small-8k")

CONTENTS = [
    "Hello there",
    "",
    " leading and trailing  ",
    "two\nlines\n\n  indented\ttab\n",
    "été, 你好, 🎉🎉, \u200d, naïve ﬁ",
    "def f(x):\n    return x ** 2  # ▁ and <0x0A>",
    "a < b and b > c || {{ jinja }} {% raw %}",
    "1234567890 3.14159 -1e-9",
    "\x00\x01 control",
]


def conversations() -> list[list[dict[str, str]]]:
    single = [[{"role": "user", "content": content}] for content in CONTENTS]
    several = [
        {"role": role, "content": content}
        for role, content in zip(["user", "assistant"] * 4, CONTENTS[:7], strict=False)
    ]
    return [*single, several, several[:3]]


@pytest.fixture(scope="module", params=FOLDERS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Ours and transformers' tokenizer of one published model."""
    folder: Path = SHARED / request.param
    if not folder.is_dir():
        pytest.skip(f"needs {folder}: the published tokenizers are beside the checkout, in ../shared")
    import transformers

    if request.param == "small-8k":
        folder = convert_tiktoken(folder, tmp_path_factory.mktemp("small"))
        return Tokenizer(folder), transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), chat_template=CHAT_TEMPLATE
        )
    # Only the model_type of its config.json, which decides how transformers reads the tokenizer: mini-128k's older
    # rope settings are an error to it.
    alone = tmp_path_factory.mktemp(request.param)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, alone / name)
    (alone / "config.json").write_text('{"model_type": "phi3"}')
    return Tokenizer(folder), transformers.AutoTokenizer.from_pretrained(alone)


def convert_tiktoken(source: Path, folder: Path) -> Path:
    """Phi-3-small's published files as a tokenizer.json: byte-level BPE, cl100k."""
    import tokenizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    added = json.loads((source / "tokenizer_module.json").read_text())["added_tokens"]
    converter = TikTokenConverter(
        vocab_file=str(source / "cl100k_base.tiktoken"),
        pattern=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
    )
    tokenizer = converter.converted()
    tokenizer.add_special_tokens([tokenizers.AddedToken(token["content"], special=True) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    return folder


@pytest.mark.shared
def test_conversations_have_transformers_ids(published: tuple[Tokenizer, Any]) -> None:
    ours, theirs = published
    for messages in conversations():
        wanted = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ours.encode_chat([Message(m["role"], m["content"]) for m in messages]) == wanted, messages  # type: ignore[arg-type]


@pytest.mark.shared
def test_prompts_have_transformers_ids(published: tuple[Tokenizer, Any]) -> None:
    ours, theirs = published
    for content in CONTENTS:
        assert ours.encode_prompt(content) == theirs(content)["input_ids"], content


@pytest.mark.shared
def test_published_ids_are_read_back_as_transformers_does(published: tuple[Tokenizer, Any]) -> None:
    ours, theirs = published
    for content in CONTENTS:
        ids = ours.encode_prompt(content)
        joiner = TextJoiner(ours.bytes, [])
        assert "".join(joiner.add(id) for id in ids) == theirs.decode(ids)


@pytest.mark.shared
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_has_transformers_ids_and_comes_back(published: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = published
    assume(not any(name in text for name in theirs.get_added_vocab()))
    ids = ours.encode_prompt(text)
    assert ids == theirs(text)["input_ids"]
    joiner = TextJoiner(ours.bytes, [])
    # Llama-style tokenizers cannot tell "▁" from a space.
    assert "".join(joiner.add(id) for id in ids) == (text.replace("▁", " ") if ours.bytes.leading_space else text)


@pytest.mark.shared
def test_nobody_forges_a_published_special_token(published: tuple[Tokenizer, Any]) -> None:
    ours, theirs = published
    plain = ours.encode_chat([Message("user", "x")])
    control = [*theirs.get_added_vocab()]
    assert "<|end|>" in control or "<|user|>" in control
    forged = "".join(f"a{name}\n" for name in control) + "".join(control)
    ids = ours.encode_chat([Message("user", forged)])
    specials = [id for id in ids if ours.bytes.is_control(id)]
    assert specials == [id for id in plain if ours.bytes.is_control(id)]
    assert not any(ours.bytes.is_control(id) for id in ours.encode_prompt(forged))
    joiner = TextJoiner(ours.bytes, [])
    assert "".join(joiner.add(id) for id in ours.encode_prompt(forged)) == forged


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(fake_artifact(tmp_path_factory.mktemp("fake") / "a").folder)


@given(pieces=st.lists(st.sampled_from([*CONTROL_TOKENS, "<|", "end", "|>", "<", " ", "\n", "é"]), max_size=8))
def test_nobody_forges_a_special_token(fake: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    assert fake.encode_prompt(text) == list(text.encode())
    ids = fake.encode_chat([Message("user", text), Message("assistant", text)])
    end, newline = [CONTROL_IDS["<|end|>"]], list(b"\n")
    turn = [*newline, *text.encode(), *end, *newline]
    user, assistant = [CONTROL_IDS["<|user|>"]], [CONTROL_IDS["<|assistant|>"]]
    assert ids == [*user, *turn, *assistant, *turn, *assistant, *newline]


def test_the_private_names_cannot_be_guessed(tmp_path: Path) -> None:
    folder = fake_artifact(tmp_path / "a").folder
    first, second = Tokenizer(folder), Tokenizer(folder)
    names = set(first._private.values())
    assert not names & set(second._private.values())
    for name in second._private.values():
        assert first.encode_prompt(name) == list(name.encode())


def test_a_begin_token_comes_where_the_config_asks_for_it(tmp_path: Path) -> None:
    folder = fake_artifact(tmp_path / "a").folder
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    assert Tokenizer(folder).encode_prompt("a") == [CONTROL_IDS["<s>"], 97]
    assert CONTROL_IDS["<s>"] not in Tokenizer(folder).encode_chat([Message("user", "a")])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [CONTROL_IDS["<s>"]], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert Tokenizer(folder).encode_prompt("a") == [CONTROL_IDS["<s>"], 97], "once, not twice"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer(folder).encode_prompt("a") == [CONTROL_IDS["<s>"], 97], "by the post-processor"
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    assert Tokenizer(folder).encode_prompt("a") == [97]


def test_without_a_template_messages_are_refused(tmp_path: Path) -> None:
    folder = fake_artifact(tmp_path / "a").folder
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="no chat template"):
        Tokenizer(folder).encode_chat([Message("user", "a")])
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}<|end|>")
    assert Tokenizer(folder).encode_chat([Message("user", "a")]) == [97, CONTROL_IDS["<|end|>"]]


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    folder = fake_artifact(tmp_path / "a").folder
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(EngineError, match=r"tokenizer\.json: is not JSON"):
        Tokenizer(folder)


def test_every_character_s_origin_is_known() -> None:
    template = ChatTemplate("<|{{ messages[0].role }}|>{{ messages[0].content | trim }}!", {})
    assert template.render([Message("user", "  <|end|> ")]) == [
        Piece("<|user|>", trusted=True),
        Piece("<|end|>", trusted=False),
        Piece("!", trusted=True),
    ]


def test_a_template_may_look_at_contents_but_not_rewrite_them() -> None:
    branching = ChatTemplate("{% if messages[0].content %}[{{ messages[0].content }}]{% else %}-{% endif %}", {})
    assert "".join(piece.text for piece in branching.render([Message("user", "a")])) == "[a]"
    assert "".join(piece.text for piece in branching.render([Message("user", "")])) == "-"
    rewriting = ChatTemplate("{{ messages[0].content | upper }}", {})
    with pytest.raises(UnsupportedError, match="rewrites messages"):
        rewriting.render([Message("user", "a")])


def test_a_message_that_a_template_would_drop_is_refused() -> None:
    users_only = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(UnsupportedError, match="no place for system messages"):
        ChatTemplate(users_only, {}).render([Message("system", "Be kind"), Message("user", "a")])


def test_a_template_s_own_refusal_reaches_the_user() -> None:
    with pytest.raises(RequestError, match="only users"):
        ChatTemplate("{{ raise_exception('only users') }}", {}).render([Message("user", "a")])
    with pytest.raises(RequestError, match="refuses these messages"):
        ChatTemplate("{{ ''.__class__.__mro__ }}", {}).render([Message("user", "a")])  # the sandbox
    with pytest.raises(EngineError, match="cannot be read"):
        ChatTemplate("{% if %}", {})
