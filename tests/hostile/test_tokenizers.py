"""A tokenizer.json whose parts are of other types than we read: one line that says which part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from runtimes.errors import EngineError
from runtimes.text.token_bytes import MOST_IDS, TokenBytes, check_content

TOKEN = {"id": 1, "content": "<s>", "special": True}
VOCABS: tuple[Any, ...] = (
    None, 5, "a", {"a": None}, {"a": "0"}, {"a": -1}, {"a": True}, {"a": 0.5}, {"a": MOST_IDS}, {"a": 2**64},
    ["a"], [["a"]], [[5, 0.0]], [None],
)  # fmt: skip
ADDED: tuple[Any, ...] = (
    None, 5, {}, [None], ["<s>"], [{}], [{**TOKEN, "id": "1"}], [{**TOKEN, "id": -1}], [{**TOKEN, "id": 2**64}],
    [{**TOKEN, "content": None}], [{**TOKEN, "special": "yes"}], [{"id": 1, "content": "<s>"}],
)  # fmt: skip
DECODERS: tuple[Any, ...] = (
    None, 5, [], {"type": "Sequence"}, {"type": "Sequence", "decoders": 5},
    {"type": "Sequence", "decoders": [None]}, {"type": "Sequence", "decoders": [{"type": 5}]},
)  # fmt: skip


def content(**parts: Any) -> Mapping[str, Any]:
    sound = {"model": {"vocab": {"a": 0}}, "added_tokens": [TOKEN], "decoder": {"type": "ByteLevel"}}
    return {**sound, **parts}


def test_a_sound_one_is_taken() -> None:
    check_content(content())
    check_content(content(model={"vocab": [["a", -1.5]]}))
    without = {key: value for key, value in content().items() if key != "added_tokens"}
    check_content(without)
    assert TokenBytes(content(model={"vocab": {}}, added_tokens=[]), set(), set())[7] == b""
    assert TokenBytes(without, set(), set())[0] == b"a"


@pytest.mark.parametrize("vocab", VOCABS)
def test_a_broken_vocabulary_is_refused(vocab: Any) -> None:
    with pytest.raises(EngineError, match=r"model\.vocab"):
        check_content(content(model={"vocab": vocab}))


@pytest.mark.parametrize("added", ADDED)
def test_broken_added_tokens_are_refused(added: Any) -> None:
    with pytest.raises(EngineError, match="added_tokens"):
        check_content(content(added_tokens=added))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_broken_decoder_is_refused(decoder: Any) -> None:
    with pytest.raises(EngineError, match="decoder"):
        TokenBytes(content(decoder=decoder), set(), set())
