"""The stock engines with an artifact as it is: onnxruntime-genai, and ExecuTorch's text runner.

Each runs in a process of its own, because each loads its libraries in its own way.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 600.0

# The libraries print lines of their own, of which a part may wait in a buffer: the answers keep stdout to themselves.
ANSWERS = """
import os
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
"""
GENAI = """
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import json, sys, numpy, onnxruntime_genai as og
config = og.Config(sys.argv[1])
options = json.loads(sys.argv[2])
if options["stop"] is not None:
    config.overlay(json.dumps({"model": {"eos_token_id": options["stop"]}}))
model = og.Model(config)
tokenizer = og.Tokenizer(model)
for line in sys.stdin:
    ids = [int(id) for id in tokenizer.encode(json.loads(line))]
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + options["count"], do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(numpy.array(ids, dtype=numpy.int32))
    out = []
    while not generator.is_done() and len(out) < options["count"]:
        generator.generate_next_token()
        out.append(int(generator.get_next_tokens()[0]))
    print(json.dumps({"prompt": ids, "tokens": out}), file=answers)
"""
RUNNER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import executorch.extension.llm.custom_ops.custom_ops, executorch.kernels.quantized
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
runner = TextLLMRunner(sys.argv[1] + "/model.pte", sys.argv[1] + "/tokenizer.json")
options = json.loads(sys.argv[2])
for line in sys.stdin:
    pieces = []
    runner.reset()
    config = GenerationConfig(
        echo=False, temperature=0.0, max_new_tokens=options["count"], num_bos=0, num_eos=0
    )
    runner.generate(json.loads(line), config, pieces.append, lambda stats: None)
    print(json.dumps(pieces), file=answers)
"""


@dataclass(frozen=True)
class GenaiAnswer:
    """The prompt's ids by genai's own tokenizer, and the ids it chose: the stop id that ended them is the last."""

    prompt: list[int]
    tokens: list[int]


def genai_answers(artifact: Path, prompts: Sequence[str], count: int, *, stop: int | None = None) -> list[GenaiAnswer]:
    """At most `count` greedy tokens after each text. `stop` takes the place of the artifact's own stop ids: an id that
    never comes shows `count` tokens of every answer."""
    return [GenaiAnswer(**answer) for answer in _run(GENAI, artifact, prompts, {"count": count, "stop": stop})]


def runner_answers(artifact: Path, prompts: Sequence[str], count: int) -> list[list[str]]:
    """At most `count` greedy tokens after each text, as the text of each token, the stop token's too: the runner tells
    no ids."""
    return [list(answer) for answer in _run(RUNNER, artifact, prompts, {"count": count})]


def _run(script: str, artifact: Path, prompts: Sequence[str], options: dict[str, Any]) -> list[Any]:
    lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
    command = [sys.executable, "-c", ANSWERS + script, str(artifact), json.dumps(options)]
    result = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"the stock engine failed on {artifact}: {result.stderr[-2000:]}")
    return [json.loads(line) for line in result.stdout.splitlines()]
