"""`--kv-cache int8`: a quarter of the memory and nearly the same logits, in our engine and in the stock one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from ci.stock_engines import genai_answers
from ci.variants import make_checkpoint
from export.artifact import Artifact, open_artifact
from export.pipeline import Progress, export_model
from export.request import ExportRequest
from export.to_onnx.int8_cache import FEW_TOKENS
from phi_edge.main import main
from runtimes.api import GenerateRequest, Message, TokenEvent
from runtimes.engines.engine import OpenCache
from runtimes.engines.onnx_engine import open_onnx
from runtimes.loop.loop import PREFILL_CHUNK_TOKENS
from runtimes.registry import open_runtime
from runtimes.text.tokenizer import Tokenizer

QUESTIONS = ["Turn off the lamp in the kitchen.", "What is 17 plus 26?", "How many grams are 7 kilograms?"]
NEVER = 767  # a padding row of the vocabulary
PROMPTS = [f"<|user|>\n{question}<|end|>\n<|assistant|>\n" for question in QUESTIONS]
SHORT = ExportRequest(checkpoint="tiny", out=Path("unset"), scheme="int4-b32", context_tokens=128, kv_cache="int8")


@pytest.fixture(scope="module")
def int8(tiny_export: Callable[..., Path]) -> Artifact:
    """As tiny_onnx, with an int8 cache: the same weights."""
    return open_artifact(tiny_export("int8", kv_cache="int8"))


def answer(artifact: Path, ids: Sequence[int]) -> list[int]:
    with open_runtime(artifact) as runtime:
        events = runtime.generate(GenerateRequest(token_ids=ids, max_new_tokens=24, ignore_stop_ids=True))
        return [event.id for event in events if isinstance(event, TokenEvent)]


def test_the_manifest_has_its_memory_and_its_loss(int8: Artifact, tiny_onnx: Path) -> None:
    with_float = open_artifact(tiny_onnx).manifest
    assert 4 * int8.manifest.memory.kv_bytes_per_token == with_float.memory.kv_bytes_per_token
    assert int8.manifest.engine["kv_cache"] == (
        "int8, a scale for each channel, the last 2176 tokens, one buffer for past and present"
    )
    assert int8.manifest.loss.kv_cache_kl is not None and 0 < int8.manifest.loss.kv_cache_kl < 0.01
    assert replace(int8.manifest.loss, kv_cache_kl=None) == with_float.loss


def test_keys_and_values_are_within_half_a_step(int8: Artifact, tiny_onnx: Path) -> None:
    ids = Tokenizer(tiny_onnx).encode_prompt(PROMPTS[0])
    (codes, scales), (floats, _) = (first_layer(artifact, ids) for artifact in (int8, open_artifact(tiny_onnx)))
    for code, scale, exact in zip(codes, scales, floats, strict=True):
        assert code.dtype == np.int8
        inside = np.abs(exact) < 127 * scale[:, None]
        assert inside.mean() > 0.99
        assert (np.abs(code * scale[:, None] - exact) <= 0.51 * scale[:, None])[inside].all()


def first_layer(artifact: Artifact, ids: Sequence[int]) -> tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]]:
    """Keys and values [kv_heads, ids, head_dim] of the first layer, which has the same input with any cache; and the
    graph's scales for them."""
    engine = open_onnx(artifact, 1)
    assert isinstance(engine, OpenCache)
    engine.forward(ids, 0)
    parts = [part.copy() for part in engine.read_cache(len(ids))[:2]]
    engine.close()
    stored = {tensor.name: tensor for tensor in onnx.load(artifact.path("model.onnx")).graph.initializer}
    names = [f"model.layers.0.self_attn.{part}_cache_scales" for part in ("k", "v")]
    return parts, [numpy_helper.to_array(stored[name]) for name in names if name in stored]


@pytest.mark.parametrize("question", QUESTIONS)
def test_it_answers_as_with_a_float_cache(int8: Artifact, tiny_onnx: Path, question: str) -> None:
    request = GenerateRequest(messages=[Message("user", question)], max_new_tokens=24)
    answers = []
    for artifact in (int8.folder, tiny_onnx):
        with open_runtime(artifact) as runtime:
            answers.append([event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)])
    assert answers[0] == answers[1] and len(answers[0]) > 3


def test_stock_genai_gives_our_tokens(int8: Artifact) -> None:
    for theirs in genai_answers(int8.folder, PROMPTS, 24, stop=NEVER):
        assert theirs.tokens == answer(int8.folder, theirs.prompt)


def test_stock_genai_ends_a_long_conversation_with_our_tokens(int8: Artifact) -> None:
    # Its keys and values go through float, in one call there and in pieces here. Up to its end the tiny model is sure
    # of each token of the answer; after it a processor's rounding decides.
    with open_runtime(int8.folder) as runtime:
        turns = [
            f"{prompt}{runtime.chat(question)}<|end|>\n" for prompt, question in zip(PROMPTS, QUESTIONS, strict=True)
        ]
    (theirs,) = genai_answers(int8.folder, ["".join(turns * 7) + PROMPTS[0]], 24)
    assert theirs.tokens == answer(int8.folder, theirs.prompt)[: len(theirs.tokens)]
    assert len(theirs.tokens) > 5 and len(theirs.prompt) > PREFILL_CHUNK_TOKENS


@pytest.fixture(scope="module")
def window_int8(random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """It keeps 128 tokens."""
    checkpoint, out = random_checkpoint(sliding_window=16), tmp_path_factory.mktemp("window") / "out"
    return export_model(replace(SHORT, checkpoint=str(checkpoint), out=out, context_tokens=700))


def test_a_prompt_in_one_call_and_token_by_token_leaves_the_same_cache(int8: Artifact) -> None:
    ids = Tokenizer(int8.folder).encode_prompt(" ".join(PROMPTS))
    assert len(ids) > FEW_TOKENS
    same_cache(int8, ids, [len(ids)], len(ids), later=1)


@pytest.mark.parametrize("pieces", [[600], [300, 300], [100, 200, 290, 10]])
def test_with_a_window_too(window_int8: Artifact, pieces: Sequence[int]) -> None:
    ids = np.random.default_rng(0).integers(3, 500, 600).tolist()
    same_cache(window_int8, ids, pieces, 600 - 5 * (128 - 16 + 1), later=2)


def same_cache(artifact: Artifact, ids: Sequence[int], pieces: Sequence[int], rows: int, *, later: float) -> None:
    """`later`: by how much codes of the layers after the first may differ in the mean. Random weights make it more."""
    engine = open_onnx(artifact, 1)
    assert isinstance(engine, OpenCache)
    start = 0
    for piece in pieces:
        engine.forward(ids[start : start + piece], start)
        start += piece
    whole = [part.copy() for part in engine.read_cache(len(ids))]
    for position, id in enumerate(ids):
        engine.forward([id], position)
    singly = engine.read_cache(len(ids))
    assert {part.shape[1] for part in singly} == {rows}
    for one, other in zip(whole[:2], singly[:2], strict=True):  # of the first layer, which both ways enter alike
        assert np.abs(one.astype(int) - other).max() <= 1
    for one, other in zip(whole, singly, strict=True):
        assert np.abs(one.astype(int) - other).mean() < later
    engine.close()


def test_stock_genai_goes_beyond_a_window_with_our_tokens(window_int8: Artifact) -> None:
    (theirs,) = genai_answers(window_int8.folder, [" ".join(PROMPTS * 8)], 60, stop=NEVER)
    ours = answer(window_int8.folder, theirs.prompt)
    assert len(theirs.prompt) > 128 + FEW_TOKENS and theirs.tokens[: len(ours)] == ours


def test_a_session_is_saved_as_it_is(int8: Artifact, tiny_onnx: Path, tmp_path: Path) -> None:
    request = GenerateRequest(prompt=PROMPTS[0], max_new_tokens=8, ignore_stop_ids=True, session="kept")
    sizes = {}
    for artifact in (int8.folder, tiny_onnx):
        file = tmp_path / f"{artifact.name}.kv"
        with open_runtime(artifact) as runtime:
            before = [event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)]
            runtime.save_session("kept", file)
        with open_runtime(artifact) as runtime:
            runtime.load_session("kept", file)
            after = [event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)]
        assert before == after
        sizes[artifact] = file.stat().st_size
    assert 3 * sizes[int8.folder] < sizes[tiny_onnx]


@pytest.mark.parametrize(
    "variant", ["tiny", "phi-4-mini"]
)  # whole heads rotated; a part of each, grouped, with factors
def test_check_against_the_checkpoint(variant: str, tmp_path: Path) -> None:
    checkpoint = variant if variant == "tiny" else str(make_checkpoint(variant, tmp_path / "checkpoint"))
    artifact = export_model(replace(SHORT, checkpoint=checkpoint, out=tmp_path / "out")).folder
    result = CliRunner().invoke(main, ["check", str(artifact), "--against", checkpoint])
    assert result.exit_code == 0, result.output


def test_an_interrupted_export_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    class Interrupted(Progress):
        def read(self, name: str, count: int) -> None:
            if name.startswith("model.layers.3."):
                raise KeyboardInterrupt

    whole = export_model(replace(SHORT, out=tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        export_model(replace(SHORT, out=tmp_path / "out"), Interrupted())
    assert export_model(replace(SHORT, out=tmp_path / "out")).manifest.digest() == whole.manifest.digest()


REFUSALS = {
    "android": (["--target", "android"], "ExecuTorch's attention over int8 keys and values takes"),
    "directml": (["--target", "windows-directml"], "a float cache only"),
    "fp32": (["--scheme", "fp32"], "no text is computed"),
    "unknown": (["--kv-cache", "int4"], "'int4'"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_has_no_such_cache_is_refused(case: str, tmp_path: Path) -> None:
    options, reason = REFUSALS[case]
    words = ["export", "tiny", str(tmp_path / "out"), "--quiet", "--kv-cache", "int8", *options]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and reason in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_side_adapters_are_refused(tmp_path: Path) -> None:
    words = ["export", "tiny", str(tmp_path / "out"), "--kv-cache", "int8", "--side-adapter", str(tmp_path)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and "merge one with --adapter" in result.stderr


def test_the_plan_counts_it() -> None:
    plans = [
        CliRunner().invoke(main, ["export", "tiny", "out", "--dry-run", "--kv-cache", cache]).stdout
        for cache in ("float", "int8")
    ]
    sizes = [json.loads(plan.split("KV cache")[1].split()[0]) for plan in plans]
    assert sizes[0] == 4 * sizes[1]
