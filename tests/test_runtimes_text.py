"""From ids to shown text: characters are never cut, stop strings never shown, however the text is split into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes import GenerateRequest, open_runtime
from runtimes.engines.fake import fake_artifact, fake_opener
from runtimes.errors import EngineError
from runtimes.text.stream import StopScanner, TextJoiner
from runtimes.text.token_bytes import TokenBytes

LLAMA_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
LLAMA_VOCAB = ["<unk>", "▁Hello", "▁world", "▁", "<0xF0>", "<0x9F>", "<0x8E>", "<0x89>", "é", "▁▁", "<0x0A>"]


def llama() -> TokenBytes:
    vocab = {name: id for id, name in enumerate(LLAMA_VOCAB)}
    names = {0: "<unk>", 11: "<|end|>", 12: "covid", 13: "<|tool_call|>"}
    added = [{"id": id, "content": content} for id, content in names.items()]
    content = {"decoder": LLAMA_DECODER, "model": {"vocab": vocab}, "added_tokens": added}
    return TokenBytes(content, {"<unk>", "<|end|>", "<|tool_call|>"}, {"<unk>", "<|end|>"})


def joined(ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    joiner = TextJoiner(llama(), prompt)
    return [joiner.add(id) for id in ids]


def test_a_character_waits_for_its_last_byte() -> None:
    assert joined([1, 4, 5, 6, 7, 8]) == ["Hello", "", "", "", "🎉", "é"]


def test_broken_bytes_become_replacement_characters() -> None:
    assert "".join(joined([4, 5, 1])) == "� Hello"
    assert "".join(joined([7, 7, 8])) == "��é"


def test_only_the_tokenizer_s_own_first_space_is_dropped() -> None:
    assert joined([1, 2]) == ["Hello", " world"]
    assert joined([1, 2], prompt=[11]) == ["Hello", " world"]  # after a control token
    assert joined([2, 1], prompt=[1]) == [" world", " Hello"]  # in the middle of a text
    assert joined([9, 1]) == [" ", " Hello"]  # two spaces: one was the tokenizer's


def test_hidden_tokens_have_no_text_and_padding_ids_neither() -> None:
    assert joined([11, 1, 0, 12, 13, 999]) == ["", "Hello", "", "covid", "<|tool_call|>", ""]


def test_an_unknown_decoder_is_refused() -> None:
    with pytest.raises(EngineError, match="decoder WordPiece; known: ByteLevel"):
        TokenBytes({"decoder": {"type": "WordPiece"}, "model": {"vocab": {}}, "added_tokens": []}, set(), set())


def scan(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, str | None]:
    scanner, shown = StopScanner(stops), ""
    for piece in pieces:
        scanned = scanner.add(piece)
        shown += scanned.text
        if scanned.stop is not None:
            return shown, scanned.stop
    return shown + scanner.rest(), None


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    scanner = StopScanner(["STOP", "OX"])
    assert scanner.add("a ST").text == "a "
    assert scanner.add("O").text == ""
    assert scanner.add("N ").text == "STON "
    assert scanner.add("STO") == StopScanner(["STOP"]).add("STO")
    assert (scanner.add("X").text, scanner.rest()) == ("ST", "")


def test_the_stop_that_is_complete_first_wins() -> None:
    assert scan(["abcdef"], ["def", "cd"]) == ("ab", "cd")
    assert scan(["abcdef"], ["cd", "bcd"]) == ("a", "bcd")
    assert scan(["aaab"], ["aab"]) == ("a", "aab")


TEXT = st.text(alphabet="ab🎉", max_size=12)


@given(pieces=st.lists(TEXT, max_size=6), stops=st.lists(TEXT.filter(bool), max_size=3))
def test_the_cut_into_pieces_does_not_matter(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    shown, stop = scan(pieces, stops)
    assert (shown, stop) == scan(list(text), stops)
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(candidate) for candidate in stops)]
    if not ends:
        assert (shown, stop) == (text, None)
    else:
        longest = max((candidate for candidate in stops if text[: ends[0]].endswith(candidate)), key=len)
        assert (shown + longest, stop) == (text[: ends[0]], longest)


@given(text=st.text(max_size=20), stop=st.text(min_size=1, max_size=4))
def test_a_runtime_says_its_script_up_to_the_stop(
    text: str, stop: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "script"
    artifact = folder if folder.exists() else fake_artifact(folder).folder
    runtime = open_runtime(artifact, engine=fake_opener(text))
    *tokens, done = runtime.generate(GenerateRequest(token_ids=[256], stop=[stop]))
    shown = "".join(event.text for event in tokens) + done.text
    assert shown == text.split(stop)[0]
    for event in [*tokens, done]:
        event.text.encode()  # no half of a character


def test_a_character_that_never_ends_is_not_shown(tmp_path: Path) -> None:
    runtime = open_runtime(fake_artifact(tmp_path / "a"), engine=fake_opener("ab🎉"))
    *tokens, done = runtime.generate(GenerateRequest(token_ids=[256], max_new_tokens=4))
    assert [event.text for event in tokens] == ["a", "b", "", ""]
    assert done.text == ""
