"""Llama and Mistral checkpoints: refused by name where they are no Phi-3, else the same bytes and the same logits."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.artifact import Artifact
from export.checkpoint.open import open_checkpoint
from export.checkpoint.shards import StoredTensor
from export.errors import CheckpointError
from export.models.llama import read_config
from export.pipeline import export_model
from export.request import ExportRequest
from export.verify.conformance import examine
from export.weights.dequantize import read_weights
from fakes.random_models import SIZES, copy_tokenizer
from runtimes.engines.genai_engine import open_genai
from runtimes.subject import EngineSubject, open_subject

CONTEXT = 96
PLAIN: dict[str, Any] = SIZES | {"rms_norm_eps": 1e-5, "rope_theta": 50000.0}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 40},
    "mistral tied": {"model_type": "mistral", "sliding_window": None, "tie_word_embeddings": True},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """checkpoint(kind): random weights, as transformers saves them."""

    @functools.cache
    def make(kind: str) -> Path:
        return save_model(KINDS[kind], tmp_path_factory.mktemp("llama") / "checkpoint")

    return make


def save_model(changes: dict[str, Any], folder: Path) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    content = PLAIN | changes
    torch.manual_seed(0)
    config = AutoConfig.for_model(content.pop("model_type"), **content)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


def as_phi3(source: Path, folder: Path) -> Path:
    """The same model as a Phi-3 checkpoint: query, key and value in one matrix, gate and up in another."""
    folder.mkdir()
    weights, fused = load_file(source / "model.safetensors"), {}
    for name, weight in weights.items():
        if name.endswith("q_proj.weight"):
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            fused[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
        elif name.endswith("gate_proj.weight"):
            parts = [weight, weights[name.replace("gate_proj", "up_proj")]]
            fused[name.replace("gate_proj", "gate_up_proj")] = torch.cat(parts)
        elif not name.endswith(("k_proj.weight", "v_proj.weight", "up_proj.weight")):
            fused[name] = weight
    save_file(fused, folder / "model.safetensors")
    content = json.loads((source / "config.json").read_text())
    for key in ("head_dim", "pretraining_tp"):
        content.pop(key, None)
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "phi3"}))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / name, folder / name)
    return folder


def exported(checkpoint: Path, out: Path, format: str, scheme: str) -> Artifact:
    request = ExportRequest(checkpoint=str(checkpoint), out=out, format=format, scheme=scheme, context_tokens=CONTEXT)
    return export_model(request)


@pytest.fixture(scope="module")
def artifact(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str, str], Artifact]:
    """artifact(kind, format, scheme), exported once."""

    @functools.cache
    def make(kind: str, format: str, scheme: str) -> Artifact:
        return exported(checkpoint(kind), tmp_path_factory.mktemp("llama") / "out", format, scheme)

    return make


@pytest.mark.parametrize(
    ("kind", "format", "scheme"),
    [
        *((kind, "onnx", scheme) for kind in KINDS for scheme in ("fp32", "int4-b32")),
        # Each lowering takes seconds.
        *(("llama", "executorch", "int4-b32"), ("mistral", "executorch", "fp32")),
        ("mistral tied", "executorch", "int4-b32"),
    ],
)
def test_gives_transformers_logits(
    checkpoint: Callable[[str], Path],
    artifact: Callable[[str, str, str], Artifact],
    kind: str,
    format: str,
    scheme: str,
) -> None:
    sealed = artifact(kind, format, scheme)
    report = examine(sealed, str(checkpoint(kind)), open_subject)
    assert report.failures == [] and report.reference.startswith("transformers")
    assert {1, CONTEXT} <= {case.length for case in report.cases}
    window = KINDS[kind].get("sliding_window")
    assert [decode.boundary for decode in report.decodes] == ([window] if window else [])
    assert sealed.manifest.window_tokens == window
    if scheme == "fp32":
        assert report.max_difference < 1e-3


@pytest.mark.parametrize(("kind", "format"), [("llama", "onnx"), ("mistral tied", "onnx"), ("llama", "executorch")])
def test_has_the_bytes_of_the_same_phi3(
    checkpoint: Callable[[str], Path],
    artifact: Callable[[str, str, str], Artifact],
    kind: str,
    format: str,
    tmp_path: Path,
) -> None:
    other = as_phi3(checkpoint(kind), tmp_path / "phi3")
    theirs = exported(other, tmp_path / "theirs", format, "int4-b32").manifest
    ours = artifact(kind, format, "int4-b32").manifest
    same = [name for name in ours.files if name != "genai_config.json"]  # which has the model_type in it
    assert {name: ours.files[name] for name in same} == {name: theirs.files[name] for name in same}
    assert ours.loss == theirs.loss


def test_stock_genai_gives_our_tokens(artifact: Callable[[str, str, str], Artifact]) -> None:
    sealed = artifact("mistral", "onnx", "int4-b32")
    stock, ours = EngineSubject(open_genai(sealed, None)), open_subject(sealed)
    ids = list(range(5, 60))  # beyond the window
    assert stock.decode(ids, 16) == ours.decode(ids, 16)
    stock.close()
    ours.close()


def test_weights_are_read_back_without_the_checkpoint(
    checkpoint: Callable[[str], Path], artifact: Callable[[str, str, str], Artifact]
) -> None:
    opened, weights = open_checkpoint(str(checkpoint("llama"))), read_weights(artifact("llama", "onnx", "fp32"))
    assert list(weights) == list(opened.tensors)
    assert all(torch.equal(weights[name], tensor.read()) for name, tensor in opened.tensors.items())


def test_rows_are_read_across_the_pieces(checkpoint: Callable[[str], Path]) -> None:
    tensor = open_checkpoint(str(checkpoint("llama"))).tensors["model.layers.1.self_attn.qkv_proj.weight"]
    assert isinstance(tensor, StoredTensor) and [piece.shape[0] for piece in tensor.pieces] == [128, 64, 64]
    whole = tensor.read()
    assert np.array_equal(tensor.read_rows(100, 200), whole[100:200])
    assert np.array_equal(tensor.read_rows(190, 256), whole[190:])


@pytest.mark.parametrize(
    ("kind", "change", "part"),
    [
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope type 'llama3' is not supported"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("mistral", {"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn' is not supported in a mistral"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp"),
        ("llama", {"head_dim": 64}, "head_dim is 64"),
        ("llama", {"sliding_window": 40}, "sliding_window"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("mistral", {"num_local_experts": 8}, "num_local_experts"),
        ("mistral", {"layer_types": ["full_attention"]}, "layer_types"),
    ],
)
def test_what_is_no_phi3_is_refused_by_name(kind: str, change: dict[str, Any], part: str) -> None:
    content = PLAIN | {"model_type": kind, "vocab_size": 512}
    assert read_config(content).sliding_window is None  # Mistral's default window is longer than this context
    with pytest.raises(CheckpointError, match=part):
        read_config(content | change)


def test_pieces_of_different_types_are_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(checkpoint("llama"), folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj.weight"
    save_file(weights | {name: weights[name].half()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"q_proj.weight, .* differ in type"):
        open_checkpoint(str(folder))
