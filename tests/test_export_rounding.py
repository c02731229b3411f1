"""What an int4 artifact is held to by `check --against`: what the engine's rounding to 8 bits costs the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ci.variants import make_checkpoint
from export.artifact import Artifact
from export.pipeline import export_model
from export.request import ExportRequest
from export.verify.conformance import examine
from export.verify.conformance_report import Report
from runtimes.subject import open_subject

ROUNDING = [
    pytest.param({"format": "onnx", "scheme": "int4-b64"}, id="by block"),
    pytest.param({"format": "onnx", "scheme": "int4-b32", "kv_cache": "int8"}, id="by block, and the cache"),
    pytest.param({"format": "executorch", "scheme": "int4-b32"}, id="by row"),
]


def checked(folder: Path, asked: dict[str, Any], variant: str = "phi-3-mini-4k", **changes: Any) -> Report:
    """A variant's export beside its reference, up to 320 tokens."""
    checkpoint = make_checkpoint(variant, folder / "checkpoint", **changes)
    request = ExportRequest(checkpoint=str(checkpoint), out=folder / "artifact", context_tokens=320, **asked)
    artifact: Artifact = export_model(request)
    return examine(artifact, str(checkpoint), open_subject)


@pytest.mark.parametrize("asked", ROUNDING)
def test_an_engine_is_as_far_off_as_the_reference_that_rounds(asked: dict[str, Any], tmp_path: Path) -> None:
    report = checked(tmp_path, asked)
    assert report.failures == []
    # Half of a bound is what the rounding costs: neither much less, which would hide faults, nor all of it.
    assert 0.2 < report.share < 1
    assert "rounding" in report.bounds.reason


def test_phi3_small_is_held_to_the_same(tmp_path: Path) -> None:
    report = checked(tmp_path, {"format": "onnx", "scheme": "int4-b64"}, "phi-3-small-8k")
    assert report.failures == [] and 0.2 < report.share < 1


def test_the_bound_grows_with_the_errors_of_a_deep_model(tmp_path: Path) -> None:
    """Each layer of these random weights makes an error larger: no number fits all models."""
    shallow = checked(tmp_path / "shallow", {"scheme": "int4-b64", "kv_cache": "int8"}, num_hidden_layers=2)
    deep = checked(tmp_path / "deep", {"scheme": "int4-b64", "kv_cache": "int8"}, num_hidden_layers=24)
    assert deep.failures == [] and shallow.failures == []
    assert deep.relative > 3 * shallow.relative
    assert deep.bounds.max_difference > 3 * shallow.bounds.max_difference


def test_floats_have_fixed_bounds(tmp_path: Path) -> None:
    report = checked(tmp_path, {"format": "onnx", "scheme": "fp32"})
    assert report.failures == [] and not report.bounds.by_length and report.bounds.max_difference == 1e-3
