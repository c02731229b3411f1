"""Stock onnxruntime-genai past the sliding window and past long rope's switch: it runs on, and gives our tokens."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ci.variants import make_checkpoint
from devices.transports.local import LocalHost
from devices.transports.remote_tokens import open_remote
from export.artifact import Artifact
from export.pipeline import export_model
from export.request import ExportRequest
from fakes.android import AndroidSoftware
from runtimes.engines.genai_engine import open_genai
from runtimes.loop.tokens import NewToken, Sampling, TokenRequest, TokenSource
from runtimes.registry import open_tokens

GREEDY = Sampling()
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


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Artifact]:
    """exported(variant, context): a small float artifact with the published window and factors, exported once."""
    folder = tmp_path_factory.mktemp("long")

    @functools.cache
    def make(variant: str, context: int) -> Artifact:
        checkpoint = make_checkpoint(variant, folder / f"{variant}-checkpoint")
        out = folder / variant
        return export_model(
            ExportRequest(checkpoint=str(checkpoint), out=out, format="onnx", scheme="fp32", context_tokens=context)
        )

    return make


def ids(count: int) -> list[int]:
    found: list[int] = np.random.default_rng(1).integers(3, 500, count).tolist()
    return found


def answer(source: TokenSource, prompt: int, count: int, sampling: Sampling = GREEDY) -> list[int]:
    request = TokenRequest(ids=ids(prompt), max_new_tokens=count, sampling=sampling)
    return [record.id for record in source.stream(request) if isinstance(record, NewToken)]


@pytest.mark.parametrize(
    ("variant", "context", "prompt", "count"),
    [
        ("phi-3-mini-4k", 4096, 2040, 40),  # over the window of 2047, and over 2064, where genai's own export crashes
        ("phi-3-mini-4k", 4096, 2500, 8),
        ("phi-3.5-mini", 4352, 4090, 16),  # over 4096 in the middle of an answer: it prefills again
        ("phi-3.5-mini", 4352, 4200, 8),
    ],
)
def test_genai_gives_our_tokens(
    exported: Callable[[str, int], Artifact], variant: str, context: int, prompt: int, count: int
) -> None:
    artifact = exported(variant, context)
    result = subprocess.run(
        [sys.executable, "-c", GENAI, str(artifact.folder)],
        input=json.dumps([ids(prompt), count]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    source = open_tokens(artifact)
    ours = answer(source, prompt, count)
    source.close()
    assert len(ours) == count
    assert json.loads(result.stdout) == ours


# At 4097 tokens genai, choosing for itself, computes the sequence anew: what was drawn for it must not be lost there.
@pytest.mark.parametrize(
    ("variant", "context", "prompt"), [("phi-3.5-mini", 4352, 4090), ("phi-3-mini-4k", 4096, 2040)]
)
@pytest.mark.parametrize("runtime", ["genai", pytest.param("native agent", marks=pytest.mark.emulated)])
def test_genai_under_our_loop_draws_our_tokens_across_a_boundary(
    exported: Callable[[str, int], Artifact],
    request: pytest.FixtureRequest,
    runtime: str,
    variant: str,
    context: int,
    prompt: int,
) -> None:
    artifact = exported(variant, context)
    drawn = Sampling(temperature=3.0, seed=5)
    source: TokenSource
    if runtime == "genai":
        source = open_tokens(artifact, threads=1, engine=open_genai)
    else:
        android: AndroidSoftware = request.getfixturevalue("android")
        libraries: Path = request.getfixturevalue("host_libraries")
        command = [str(android.folder / "agent"), str(artifact.folder), "--libraries", str(libraries)]
        source = open_remote(LocalHost().start([*command, "--threads", "1"]))
    here = open_tokens(artifact, threads=1)
    assert answer(source, prompt, 16, drawn) == answer(here, prompt, 16, drawn) != answer(here, prompt, 16)
    source.close()
    here.close()
