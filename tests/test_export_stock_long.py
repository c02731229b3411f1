"""Stock onnxruntime-genai past the sliding window and past long rope's switch: it runs on, and gives our tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ci.variants import make_checkpoint
from export.pipeline import ExportRequest, export_model
from runtimes.api import GenerateRequest, TokenEvent
from runtimes.registry import open_runtime

GENAI = """
import json, sys, numpy, onnxruntime_genai as og
config = og.Config(sys.argv[1])
config.overlay(json.dumps({"model": {"eos_token_id": 767}}))  # see every token that was asked for
model = og.Model(config)
ids, count = json.load(sys.stdin)
params = og.GeneratorParams(model)
params.set_search_options(max_length=len(ids) + count, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens(numpy.array(ids, dtype=numpy.int32))
out = []
while not generator.is_done() and len(out) < count:
    generator.generate_next_token()
    out.append(int(generator.get_next_tokens()[0]))
print(json.dumps(out))
"""


@pytest.mark.parametrize(
    ("variant", "context", "prompt", "count"),
    [
        ("phi-3-mini-4k", 4096, 2040, 40),  # over the window of 2047, and over 2064, where genai's own export crashes
        ("phi-3-mini-4k", 4096, 2500, 8),
        ("phi-3.5-mini", 4352, 4090, 16),  # over 4096 in the middle of an answer: it prefills again
        ("phi-3.5-mini", 4352, 4200, 8),
    ],
)
def test_genai_gives_our_tokens(variant: str, context: int, prompt: int, count: int, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(variant, tmp_path / "checkpoint")
    request = ExportRequest(
        checkpoint=str(checkpoint), out=tmp_path / "out", format="onnx", scheme="fp32", context_tokens=context
    )
    artifact = export_model(request)
    ids = np.random.default_rng(1).integers(3, 500, prompt).tolist()
    result = subprocess.run(
        [sys.executable, "-c", GENAI, str(artifact.folder)],
        input=json.dumps([ids, count]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    runtime = open_runtime(artifact)
    asked = GenerateRequest(token_ids=ids, max_new_tokens=count, ignore_stop_ids=True)
    ours = [event.id for event in runtime.generate(asked) if isinstance(event, TokenEvent)]
    runtime.close()
    assert len(ours) == count
    assert json.loads(result.stdout) == ours
