"""The stock engines load our artifacts unchanged and give our greedy tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtimes.api import GenerateRequest, Message, TokenEvent
from runtimes.registry import open_runtime

# Long answers are rare in the tiny model's field: what it says after its first stop token is held against ours too.
PROMPTS = ["Turn off the lamp in the kitchen.", "What is 17 plus 26?", "How many grams are 7 kilograms?"]
TOKENS = 64

# The runners run in processes of their own: each loads its libraries its own way.
GENAI = """
import json, sys, numpy, onnxruntime_genai as og
# The folder is loaded as it is; only the generation's own stop is moved to a padding id, to see 64 tokens.
config = og.Config(sys.argv[1])
config.overlay(json.dumps({"model": {"eos_token_id": 767}}))
model = og.Model(config)
tokenizer = og.Tokenizer(model)
for line in sys.stdin:
    prompt = json.loads(line)
    ids = tokenizer.encode(prompt)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + 64, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(numpy.array(ids, dtype=numpy.int32))
    out = []
    while not generator.is_done() and len(out) < 64:
        generator.generate_next_token()
        out.append(int(generator.get_next_tokens()[0]))
    print(json.dumps({"prompt": [int(i) for i in ids], "out": out}))
"""
RUNNER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import executorch.extension.llm.custom_ops.custom_ops, executorch.kernels.quantized
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
runner = TextLLMRunner(sys.argv[1] + "/model.pte", sys.argv[1] + "/tokenizer.json")
for line in sys.stdin:
    pieces = []
    runner.reset()
    config = GenerationConfig(echo=False, temperature=0.0, max_new_tokens=64, num_bos=0, num_eos=0)
    runner.generate(json.loads(line), config, pieces.append, lambda stats: None)
    print("ANSWER " + json.dumps("".join(pieces)))
"""


def run(script: str, artifact: Path, prompts: list[str]) -> list[str]:
    lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
    result = subprocess.run(
        [sys.executable, "-c", script, str(artifact)], input=lines, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.splitlines()


def chat(question: str) -> str:
    return f"<|user|>\n{question}<|end|>\n<|assistant|>\n"


@pytest.fixture(scope="module")
def genai_answers(tiny_onnx: Path) -> list[dict[str, list[int]]]:
    return [json.loads(line) for line in run(GENAI, tiny_onnx, [chat(prompt) for prompt in PROMPTS])]


def test_genai_gives_our_64_tokens(tiny_onnx: Path, genai_answers: list[dict[str, list[int]]]) -> None:
    runtime = open_runtime(tiny_onnx)
    for answer in genai_answers:
        request = GenerateRequest(token_ids=answer["prompt"], max_new_tokens=TOKENS, ignore_stop_ids=True)
        ours = [event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)]
        assert len(ours) == TOKENS
        assert answer["out"] == ours
    runtime.close()


def test_genai_tokenises_as_we_do(tiny_onnx: Path, genai_answers: list[dict[str, list[int]]]) -> None:
    from runtimes.tokenizer import Tokenizer

    tokenizer = Tokenizer(tiny_onnx)
    for prompt, answer in zip(PROMPTS, genai_answers, strict=True):
        assert list(tokenizer.encode_chat([Message("user", prompt)])) == answer["prompt"]


def test_stock_text_runner_gives_our_answers(tiny_executorch: Path) -> None:
    output = run(RUNNER, tiny_executorch, [chat(prompt) for prompt in PROMPTS])
    answers = [json.loads(line.removeprefix("ANSWER ")) for line in output if line.startswith("ANSWER ")]
    runtime = open_runtime(tiny_executorch)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        request = GenerateRequest(messages=[Message("user", prompt)], max_new_tokens=TOKENS)
        ours = "".join(event.text for event in runtime.generate(request))
        # The runner prints its stop token's text; ours ends before it.
        assert answer.removesuffix("<|end|>") == ours
        assert len(ours) > 10
    runtime.close()
