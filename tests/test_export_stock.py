"""The stock engines load our artifacts unchanged. tests/test_ci_four_engines.py compares their answers with ours; here
genai is held against ours beyond an answer's end too, where the tiny model is less sure of itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.stock_engines import GenaiAnswer, genai_answers
from runtimes.api import GenerateRequest, Message, TokenEvent
from runtimes.registry import open_runtime
from runtimes.text.tokenizer import Tokenizer

PROMPTS = ["Turn off the lamp in the kitchen.", "What is 17 plus 26?", "How many grams are 7 kilograms?"]
TOKENS = 64
NEVER = 767  # a padding row of the vocabulary


@pytest.fixture(scope="module")
def answers(tiny_onnx: Path) -> list[GenaiAnswer]:
    texts = [f"<|user|>\n{question}<|end|>\n<|assistant|>\n" for question in PROMPTS]
    return genai_answers(tiny_onnx, texts, TOKENS, stop=NEVER)


def test_genai_gives_our_64_tokens(tiny_onnx: Path, answers: list[GenaiAnswer]) -> None:
    runtime = open_runtime(tiny_onnx)
    for answer in answers:
        request = GenerateRequest(token_ids=answer.prompt, max_new_tokens=TOKENS, ignore_stop_ids=True)
        ours = [event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)]
        assert len(ours) == TOKENS
        assert answer.tokens == ours
    runtime.close()


def test_genai_tokenises_as_we_do(tiny_onnx: Path, answers: list[GenaiAnswer]) -> None:
    tokenizer = Tokenizer(tiny_onnx)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert list(tokenizer.encode_chat([Message("user", prompt)])) == answer.prompt
