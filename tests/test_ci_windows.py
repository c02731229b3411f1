"""Artifacts on the real Windows onnxruntime.dll and DirectML.dll under Wine: placements, kernels, the CPU's numbers.

Nothing here measures DirectML's arithmetic: the software device under Wine runs none of its kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ci.placements import PlacementError, count, fallen_back, read_placements
from ci.variants import make_checkpoint
from export.artifact import Artifact, open_artifact
from export.coverage import DIRECTML_LENGTHS
from export.pipeline import export_model
from export.request import ExportRequest
from fakes.windows_session import DIRECTML, Windows, WindowsSession, missing, own_windows, run_session
from runtimes.engines.onnx_engine import open_onnx

CONTEXT = 64
HEAD = "2026-11-23 [V:onnxruntime:, session_state.cc:1377 onnxruntime::VerifyEachNodeIsAssignedToAnEp]"
LOG = f"""{HEAD} Node placements
{HEAD}  Node(s) placed on [DmlExecutionProvider]. Number of nodes: 2
{HEAD}   MatMulNBits (/lm_head/MatMulNBits)
{HEAD}   Cast (/lengths/last/Cast)
{HEAD}  Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2
{HEAD}   Gather (/lengths/Gather)
{HEAD}   GatherBlockQuantized (/model/embed_tokens/GatherBlockQuantized)
something else
"""


def test_placements_are_read_and_judged() -> None:
    placements = read_placements(LOG)
    assert count(placements) == {
        "DmlExecutionProvider": {"MatMulNBits": 1, "Cast": 1},
        "CPUExecutionProvider": {"Gather": 1, "GatherBlockQuantized": 1},
    }
    assert [item.node for item in fallen_back(placements, DIRECTML)] == ["/model/embed_tokens/GatherBlockQuantized"]
    assert len(fallen_back(placements, DIRECTML, frozenset())) == 2
    everything = read_placements(
        f"{HEAD} Node placements\n{HEAD} All nodes placed on [{DIRECTML}]. Number of nodes: 3\n"
    )
    assert (len(everything), fallen_back(everything, DIRECTML)) == (3, [])


@pytest.mark.parametrize(
    "log", ["", LOG.replace("Number of nodes: 2", "Number of nodes: 3"), f"{HEAD} Node placements"]
)
def test_a_log_without_all_placements_is_refused(log: str) -> None:
    if log.endswith("Node placements"):
        assert read_placements(log) == []
        return
    with pytest.raises(PlacementError):
        read_placements(log)


@pytest.fixture(scope="module")
def windows() -> Iterator[Windows]:
    if (lacking := missing()) is not None:
        pytest.skip(lacking)
    with own_windows() as own:
        yield own


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """tiny(**options): in the default scheme, whose calibration takes seconds; each exported once."""

    @functools.cache
    def make(**options: Any) -> Artifact:
        out = tmp_path_factory.mktemp("windows") / "tiny"
        options = {"target": "windows-directml", "activations": "float32", "context_tokens": CONTEXT, **options}
        return export_model(ExportRequest(checkpoint="tiny", out=out, **options))

    return make


def astray(session: WindowsSession) -> list[str]:
    assert session.error is None
    return [f"{item.node} ({item.operator}) on {item.provider}" for item in fallen_back(session.placements(), DIRECTML)]


@pytest.mark.wine
def test_directml_takes_every_node_but_the_lengths(windows: Windows, tiny: Callable[..., Artifact]) -> None:
    session = run_session(windows, tiny().path("model.onnx"), "dml")
    assert astray(session) == []
    elsewhere = {item.node for item in session.placements() if item.provider != DIRECTML}
    assert elsewhere == {"/lengths/Gather", "/lengths/total/Cast"} == DIRECTML_LENGTHS


@pytest.mark.wine
def test_with_lengths_as_inputs_no_node_needs_the_cpu(windows: Windows, tiny: Callable[..., Artifact]) -> None:
    model = tiny(lengths_as_inputs=True).path("model.onnx")
    session = run_session(windows, model, "dml", strict=True)
    assert session.error is None
    assert fallen_back(session.placements(), DIRECTML, frozenset()) == []


@pytest.mark.wine
def test_the_cpus_graph_would_fall_back(windows: Windows, tiny: Callable[..., Artifact]) -> None:
    model = tiny(target="cpu").path("model.onnx")
    assert astray(run_session(windows, model, "dml")) == [
        "/model/embed_tokens/GatherBlockQuantized (GatherBlockQuantized) on CPUExecutionProvider"
    ]
    session = run_session(windows, model, "dml", strict=True)
    assert session.error is not None and "fallback to CPU EP has been explicitly disabled" in session.error


# The published factors, windows and head layouts, in two layers; 3.5's context goes beyond its switch.
VARIANTS = {"phi-3-mini-4k": 1024, "phi-3-medium-4k": 1024, "phi-3.5-mini": 4352, "phi-4-mini": 1024}


@pytest.mark.wine
@pytest.mark.parametrize("lengths_as_inputs", [False, True], ids=["mask", "lengths"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_placements_of_the_family(windows: Windows, tmp_path: Path, variant: str, lengths_as_inputs: bool) -> None:
    artifact = export_model(
        ExportRequest(
            checkpoint=str(make_checkpoint(variant, tmp_path / "checkpoint")),
            out=tmp_path / "out",
            target="windows-directml",
            activations="float32",
            scheme="int4-b32-e8",  # the default's zero points are in the tests above
            context_tokens=VARIANTS[variant],
            lengths_as_inputs=lengths_as_inputs,
        )
    )
    assert artifact.manifest.rope.switch_tokens == (4096 if variant == "phi-3.5-mini" else None)
    session = run_session(windows, artifact.path("model.onnx"), "dml", strict=lengths_as_inputs)
    assert astray(session) == []
    elsewhere = {item.node for item in session.placements() if item.provider != DIRECTML}
    assert elsewhere == (set() if lengths_as_inputs else DIRECTML_LENGTHS)


def beginning(model: Path, out: Path, last: str) -> Path:
    """The graph up to its first node of kind `last`, with one token and every size fixed.

    DirectML makes a kernel when it knows the sizes: placing a node promises less than that.
    """
    sizes = {"batch_size": 1, "sequence_length": 1, "total_sequence_length": 9, "past_sequence_length": CONTEXT}
    whole = onnx.load(model, load_external_data=False)
    graph = whole.graph
    end = next(number for number, node in enumerate(graph.node) if node.op_type == last) + 1
    del graph.node[end:]
    read = {name for node in graph.node for name in node.input}
    written = {name for node in graph.node for name in node.output}
    for field in (graph.input, graph.initializer):
        kept = [item for item in field if item.name in read]
        del field[:]
        field.extend(kept)
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(written - read))
    for item in graph.input:
        for dim in item.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    out.mkdir()
    onnx.save(whole, out / "model.onnx")
    (out / "model.onnx.data").write_bytes((model.parent / "model.onnx.data").read_bytes())
    return out / "model.onnx"


@pytest.mark.wine
@pytest.mark.parametrize(("target", "made"), [("windows-directml", True), ("cpu", False)])
def test_directml_makes_the_kernels_up_to_attention(
    windows: Windows, tiny: Callable[..., Artifact], tmp_path: Path, target: str, made: bool
) -> None:
    """It places the CPU's attention, with query, key and value in one, and then cannot make it."""
    artifact = tiny(target=target, scheme="int4-b32", lengths_as_inputs=made)
    session = run_session(
        windows, beginning(artifact.path("model.onnx"), tmp_path / "cut", "GroupQueryAttention"), "dml"
    )
    if made:
        assert session.error is None
    else:
        assert session.error is not None and "80070057" in session.error


@pytest.mark.wine
@pytest.mark.parametrize("lengths_as_inputs", [False, True], ids=["mask", "lengths"])
def test_windows_computes_what_linux_does(
    windows: Windows, tiny: Callable[..., Artifact], lengths_as_inputs: bool
) -> None:
    """Prefill and four tokens on the CPU provider of the Windows library."""
    artifact = tiny(lengths_as_inputs=lengths_as_inputs)
    engine = open_onnx(open_artifact(artifact.folder), 1)
    pieces, start = [[1, 17, 42, 99, 300, 7, 21], [5], [250], [33], [4]], 0
    model, ours, feeds = artifact.manifest.model, [], []
    for ids in pieces:
        end = start + len(ids)
        ours.append(engine.forward(ids, start).copy())
        feed: dict[str, Any] = {
            "input_ids": {"type": "int64", "shape": [1, len(ids)], "data": ids},
            "position_ids": {"type": "int64", "shape": [1, len(ids)], "data": list(range(start, end))},
        }
        if lengths_as_inputs:
            feed["seqlens_k"] = {"type": "int32", "shape": [1], "data": [end - 1]}
            feed["total_sequence_length"] = {"type": "int32", "shape": [1], "data": [end]}
        else:
            feed["attention_mask"] = {"type": "int64", "shape": [1, end], "data": [1] * end}
        feeds.append(feed)
        start = end
    shape = [1, model.kv_heads, CONTEXT, model.head_dim]
    for layer in range(model.layers):
        for part in ("key", "value"):
            feeds[0][f"past_key_values.{layer}.{part}"] = {"type": "float32", "shape": shape}
    session = run_session(windows, artifact.path("model.onnx"), "cpu", feeds=feeds)
    engine.close()
    assert session.error is None
    assert len(session.logits) == len(pieces)
    for theirs, mine in zip(session.logits, ours, strict=True):
        assert np.abs(np.array(theirs, np.float32) - mine).max() < 1e-3
