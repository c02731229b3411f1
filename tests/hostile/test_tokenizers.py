"""A tokenizer.json whose parts are of other types than we read, or that does too much: one line that says what."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from devices.transports.self_timed import spelt_ids
from devices.transports.texts import Texts
from export.artifact import Artifact, open_artifact
from export.checkpoint.open import open_checkpoint
from export.errors import CheckpointError
from export.weights.calibration import Encoder
from runtimes.errors import EngineError, RequestError, UnsupportedError
from runtimes.text.token_bytes import MOST_IDS, TokenBytes, check_content
from runtimes.text.tokenizer import Tokenizer

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


def tiny_with(folder: Path, **parts: Any) -> Path:
    """The tiny checkpoint, with other parts of its tokenizer.json."""
    shutil.copytree(Path(__file__).parents[2] / "export" / "tiny", folder)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | parts))
    return folder


def with_tokenizer(artifact: Path, checkpoint: Path) -> Artifact:
    """The artifact as if the checkpoint's tokenizer were its own: what a runner that takes text would get."""
    return dataclasses.replace(open_artifact(artifact), folder=checkpoint)


def replace(pattern: str, content: str) -> Mapping[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": replace("a", "b" * 410_000)},
        {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "aa")] * 30}},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 1000}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False,
                                                                 "trim_offsets": True, "use_regex": False}] * 9}},
        {"decoder": {"type": "Sequence", "decoders": [replace("▁", " " * 10_000), {"type": "ByteFallback"},
                                                      {"type": "Fuse"}]}},
    ],
    ids=["long", "doubled", "prepended", "bytes of bytes", "decoded"],
)  # fmt: skip
def test_one_that_makes_far_more_text_than_it_gets_is_refused(
    tmp_path: Path, tiny_onnx: Path, parts: Mapping[str, Any]
) -> None:
    folder = tiny_with(tmp_path / "checkpoint", **parts)
    with pytest.raises(CheckpointError, match="characters of one, and at most 64 are taken"):
        open_checkpoint(str(folder))
    with pytest.raises(EngineError, match="characters of one, and at most 64 are taken"):
        Tokenizer(folder)
    with pytest.raises(EngineError, match="characters of one, and at most 64 are taken"):
        Texts(with_tokenizer(tiny_onnx, folder).path("tokenizer.json"))


def test_a_pattern_that_takes_too_many_tries_is_an_error_of_ours(tmp_path: Path, tiny_onnx: Path) -> None:
    """The library's Rust gives up with an exception that is no Exception."""
    pattern = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    folder = tiny_with(tmp_path / "checkpoint", pre_tokenizer=pattern)
    with pytest.raises(RequestError, match=r"cannot split this text .*retry-limit"):
        Tokenizer(folder).encode_prompt("x" * 60)
    with pytest.raises(CheckpointError, match=r"cannot split 'xxx.*retry-limit"):
        Encoder(open_checkpoint(str(folder))).ids("x" * 60, special=True)
    with pytest.raises(UnsupportedError, match=r"cannot split this text .*retry-limit"):
        Texts(with_tokenizer(tiny_onnx, folder).path("tokenizer.json")).encode("x" * 60)


def test_one_without_a_word_that_is_read_as_written_is_refused_at_once(tmp_path: Path, tiny_onnx: Path) -> None:
    """Not after a hundred tries for each of a million ids."""
    folder = tiny_with(tmp_path / "checkpoint", normalizer=replace("a", "b"), decoder=replace("e", "a"))
    artifact = with_tokenizer(tiny_onnx, folder)
    with pytest.raises(UnsupportedError, match="no words that it reads as it wrote them"):
        spelt_ids(Texts(artifact.path("tokenizer.json")), artifact.manifest.tokens, 1_000_000)


def test_a_text_is_neither_cut_nor_padded(tmp_path: Path, tiny_onnx: Path) -> None:
    """Of whatever length the tokenizer was saved for."""
    padding = {"strategy": {"Fixed": 10**11}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "<s>"}  # fmt: skip
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    folder = tiny_with(tmp_path / "checkpoint", padding=padding, truncation=truncation)
    expected = Tokenizer(Path(__file__).parents[2] / "export" / "tiny").encode_prompt("The lamp is on.")
    assert len(expected) > 1 and Tokenizer(folder).encode_prompt("The lamp is on.") == expected
    assert Encoder(open_checkpoint(str(folder))).ids("The lamp is on.", special=True) == expected
    assert Texts(with_tokenizer(tiny_onnx, folder).path("tokenizer.json")).encode("The lamp is on.") == expected
