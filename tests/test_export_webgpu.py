"""The graph for WebGPU computes what the CPU's does: here on the CPU provider, which has all its operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.artifact import Artifact, open_artifact
from export.errors import OptionError
from export.pipeline import export_model
from export.request import ExportRequest
from runtimes.engines.onnx_engine import open_onnx

IDS = np.random.default_rng(0).integers(3, 500, 90).tolist()
FLOAT: dict[str, Any] = {"scheme": "fp32", "context_tokens": 160}


def export(checkpoint: Path, out: Path, target: str, **options: Any) -> Artifact:
    return export_model(ExportRequest(checkpoint=str(checkpoint), out=out, target=target, **options))


def test_long_rope_is_rotated_before_the_attention(longrope_checkpoint: Path, tmp_path: Path) -> None:
    """Below, across and beyond the switch at 64 tokens."""
    web = export(longrope_checkpoint, tmp_path / "web", "web", activations="float32", **FLOAT)
    engines = [open_onnx(web, None), open_onnx(export(longrope_checkpoint, tmp_path / "cpu", "cpu", **FLOAT), None)]
    for pieces, long in (([20, 1, 1], False), ([40, 24, 26], True), ([90], True)):
        start = 0
        for size in pieces:
            ours, theirs = (engine.forward(IDS[start : start + size], start, long=long) for engine in engines)
            assert float(np.abs(ours - theirs).max()) < 1e-4
            start += size
    graph = onnx.load(web.folder / "model.onnx", load_external_data=False).graph
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert attentions and all(attribute.name != "do_rotary" for node in attentions for attribute in node.attribute)
    assert set(web.manifest.coverage["CPUExecutionProvider"]) <= {
        "Add", "Cast", "FusedMatMul", "Gather", "Greater", "Mul", "Range", "ReduceSum", "Shape", "Squeeze", "Sub",
        "Unsqueeze",
    }  # fmt: skip


def test_both_activations_have_the_same_weights(tiny_web: Path, tiny_web_half: Path) -> None:
    logits = []
    for folder, type in ((tiny_web_half, "float16"), (tiny_web, "float32")):
        artifact = open_artifact(folder)
        assert artifact.manifest.scheme.activations == type
        logits.append(open_onnx(artifact, None).forward(IDS[:20], 0).copy())
    assert float(np.abs(logits[0] - logits[1]).max()) < 0.2  # half precision; the logits reach 15


def test_files_are_split_for_browsers(tmp_path: Path) -> None:
    artifact = export(Path("tiny"), tmp_path / "a", "web", scheme="int4-b32", max_file_bytes=1_000_000)
    assert {"model.onnx.data", "model.onnx.data.1"} <= set(artifact.manifest.files)
    assert artifact.manifest.engine["max_file_bytes"] == 1_000_000
    assert open_artifact(artifact.folder).manifest == artifact.manifest


def test_what_a_browser_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="target web has no format executorch; it has: onnx"):
        export(Path("tiny"), tmp_path / "a", "web", format="executorch")
    with pytest.raises(OptionError, match="scheme fp32 keeps 32-bit weights: give --activations float32"):
        export(Path("tiny"), tmp_path / "a", "web", scheme="fp32")
