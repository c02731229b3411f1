"""The graph for DirectML computes what the CPU's does: here on the CPU provider, which has all its operators."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from safetensors.torch import load_file, save_file

from export.artifact import describe_files, open_artifact
from export.errors import CheckpointError, OptionError
from export.pipeline import export_model
from export.request import ExportRequest
from export.to_onnx import operators as onnx_operators
from runtimes.engines.onnx_engine import open_onnx

IDS = np.random.default_rng(0).integers(3, 500, 90).tolist()
# Half precision through two layers of random weights: 11 bits of mantissa, logits of about 10.
FLOAT16_BOUND = 0.05


def logits(
    checkpoint: Path, out: Path, pieces: list[int], change: Callable[[Path], None] = lambda folder: None, **options: Any
) -> list[npt.NDArray[np.float32]]:
    """Export, change the artifact, and take the logits after each piece."""
    export_model(ExportRequest(checkpoint=str(checkpoint), out=out, scheme="int4-b32", **options))
    change(out)
    engine = open_onnx(open_artifact(out), None)
    seen, start = [], 0
    for size in pieces:
        long = engine.switch_tokens is not None and sum(pieces) > engine.switch_tokens
        seen.append(engine.forward(IDS[start : start + size], start, long=long).copy())
        start += size
    engine.close()
    return seen


def worst(left: list[npt.NDArray[np.float32]], right: list[npt.NDArray[np.float32]]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


def as_float(folder: Path) -> None:
    """Turn off the int8 of the CPU form's MatMulNBits, which has an accuracy of its own."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(model, folder / "model.onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = dataclasses.asdict(describe_files(folder, ["model.onnx"])["model.onnx"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"partial_rotary_factor": 0.5}],
    ids=["mini", "tied", "partial"],
)
def test_the_form_changes_nothing(
    random_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    checkpoint, pieces = random_checkpoint(**changes), [40, 1, 1, 7]
    plain: dict[str, Any] = {"target": "windows-directml", "activations": "float32"}
    ours = logits(checkpoint, tmp_path / "dml", pieces, **plain)
    given = logits(checkpoint, tmp_path / "given", pieces, lengths_as_inputs=True, **plain)
    half = logits(checkpoint, tmp_path / "half", pieces, target="windows-directml")
    # The CPU's form with the same rounding of scales, so with the same weights.
    monkeypatch.setattr("export.to_onnx.layout.CPU", dataclasses.replace(onnx_operators.CPU, scales="float16"))
    cpu = logits(checkpoint, tmp_path / "cpu", pieces, change=as_float)
    assert worst(ours, cpu) < 1e-4
    assert worst(given, ours) == 0
    assert 0 < worst(half, ours) < FLOAT16_BOUND


LONG = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 64,
    "sliding_window": None,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 64,
        "short_factor": np.linspace(1, 2, 16).tolist(),
        "long_factor": np.linspace(2, 9, 16).tolist(),
    },
}


@pytest.mark.parametrize("pieces", [[40, 1], [80, 1], [30, 50, 1]], ids=["short", "long", "long in pieces"])
def test_long_rope_switches(
    random_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[int]
) -> None:
    checkpoint = random_checkpoint(**LONG)
    options: dict[str, Any] = {"target": "windows-directml", "activations": "float32", "context_tokens": 128}
    ours = logits(checkpoint, tmp_path / "dml", pieces, **options)
    monkeypatch.setattr("export.to_onnx.layout.CPU", dataclasses.replace(onnx_operators.CPU, scales="float16"))
    cpu = logits(checkpoint, tmp_path / "cpu", pieces, change=as_float, context_tokens=128)
    assert worst(ours, cpu) < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "windows-directml", "context_tokens": 2048}, "slides after 2047 tokens, which windows-directml"),
        ({"target": "windows-directml", "scheme": "fp32"}, "fp32 keeps 32-bit weights: give --activations float32"),
        ({"target": "cpu", "activations": "float16"}, "target cpu has float32"),
        ({"target": "cpu", "lengths_as_inputs": True}, "is for windows-directml"),
    ],
)
def test_what_it_cannot_do_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        export_model(ExportRequest(checkpoint="tiny", out=tmp_path / "out", **options))


def test_the_default_context_stays_within_the_window(tiny_directml: Path) -> None:
    manifest = open_artifact(tiny_directml).manifest
    assert (manifest.context_tokens, manifest.window_tokens) == (2047, 2047)
    assert manifest.scheme.activations == "float16"
    assert manifest.memory.kv_bytes_per_token == 2 * 4 * 2 * 32 * 2


@pytest.mark.parametrize(("smaller", "seen"), [(1e-9, 1), (0.0, 0), (1.0, 0)])
def test_a_scale_that_float16_rounds_to_zero_is_a_note(
    random_checkpoint: Callable[..., Path], tmp_path: Path, smaller: float, seen: int
) -> None:
    checkpoint = random_checkpoint()
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.down_proj.weight"][5, :32] *= smaller
    save_file(weights, file, metadata={"format": "pt"})
    request = ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", target="windows-directml")
    manifest = export_model(request).manifest
    assert manifest.loss.zeroed_blocks == seen
    assert any("too small for a scale of their type and were stored as 0" in note for note in manifest.notes) == seen


def test_activations_beyond_float16_are_refused(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = random_checkpoint()
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.down_proj.weight"] *= 1e5
    save_file(weights, file, metadata={"format": "pt"})

    def export(out: str, **options: Any) -> None:
        request = ExportRequest(checkpoint=str(checkpoint), out=tmp_path / out, target="windows-directml", **options)
        export_model(request)

    with pytest.raises(CheckpointError, match=r"an activation reaches .* float16 ends at 65504.*--activations float32"):
        export("half")
    assert list(tmp_path.glob("half*")) == []  # nor the work so far: every try would end so
    export("float", activations="float32")
