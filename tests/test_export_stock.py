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


def test_genai_s_temperature_changes_answers(tiny_onnx: Path) -> None:
    """The config of the folder must not pin the most likely token."""
    import onnxruntime_genai as genai

    model, seen = genai.Model(str(tiny_onnx)), set()
    for seed in range(8):
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=16, do_sample=True, temperature=2.0, random_seed=seed)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(Tokenizer(tiny_onnx).encode_prompt("Tell me about the lamp."))
        while not generator.is_done():
            generator.generate_next_token()
        seen.add(tuple(generator.get_sequence(0)))
    assert len(seen) > 1


def test_genai_tokenises_as_we_do(tiny_onnx: Path, answers: list[GenaiAnswer]) -> None:
    tokenizer = Tokenizer(tiny_onnx)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert list(tokenizer.encode_chat([Message("user", prompt)])) == answer.prompt
