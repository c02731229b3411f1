"""WebGPU outside a browser: which adapter is chosen, from made-up facts; and the real plugin on a software device."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

from ci.four_engines import held_out_prompts
from ci.gpu.plan import Plan
from ci.gpu.questions import twenty_questions
from ci.gpu_check import check
from ci.placements import read_placements
from devices.drivers.table import open_device_runtime
from export.artifact import open_artifact
from export.coverage import WEBGPU_LENGTHS
from export.pipeline import export_model
from export.request import ExportRequest
from fakes.vulkan import lavapipe, software_vulkan
from phi_edge.main import main
from runtimes import GenerateRequest, TokenEvent
from runtimes.engines.engine import Graphics
from runtimes.engines.onnx_engine import open_onnx
from runtimes.engines.webgpu import ALLOW_SOFTWARE, PROVIDER, GpuDevice, choose_device, open_webgpu
from runtimes.engines.webgpu_probe import GATHER
from runtimes.errors import EngineError
from runtimes.proof import prove
from runtimes.registry import open_runtime

SOFTWARE = GpuDevice(vendor="AMD", number=0, discrete=False, software=True)
INTEL = GpuDevice(vendor="Intel", number=0x9A49, discrete=False, software=False)
NVIDIA = GpuDevice(vendor="NVIDIA", number=0x2882, discrete=True, software=False)


def test_a_discrete_adapter_or_the_one_that_is_named() -> None:
    assert choose_device([SOFTWARE, INTEL, NVIDIA]) == NVIDIA
    assert choose_device([SOFTWARE, INTEL]) == INTEL
    assert choose_device([SOFTWARE, INTEL, NVIDIA], "intel") == INTEL
    assert choose_device([SOFTWARE, INTEL, NVIDIA], "1") == INTEL
    assert choose_device([SOFTWARE], "software") == SOFTWARE


@pytest.mark.parametrize(
    ("devices", "wanted", "message"),
    [
        ([], None, r"so this would run on the CPU \(adapters: none\); export for --target cpu, or allow the CPU"),
        ([SOFTWARE], None, r"would run on the CPU \(adapters: 0: software on AMD\)"),
        ([INTEL, NVIDIA], "amd", r"adapter 'amd' matches 0; there are: 0: Intel 0x9a49; 1: NVIDIA 0x2882 \(discrete\)"),
        ([INTEL, INTEL], "intel", "matches 2"),
    ],
)
def test_no_adapter_is_no_silent_cpu(devices: list[GpuDevice], wanted: str | None, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        choose_device(devices, wanted)


def test_the_cpu_takes_over_only_where_it_is_allowed(
    tiny_webgpu_float: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runtimes.engines.webgpu.list_devices", lambda: [SOFTWARE])
    artifact = open_artifact(tiny_webgpu_float)
    with pytest.raises(EngineError, match="no graphics adapter for WebGPU"):
        open_runtime(artifact)
    assert open_webgpu(artifact, 1, graphics=Graphics(allow_cpu=True)).accelerator is None
    assert "phi-edge: on the CPU: no graphics adapter for WebGPU" in capfd.readouterr().err
    # An export needs no adapter, and says so.
    assert prove(artifact, [[3, 4], [5]]) == (["run here on ONNX Runtime's CPU, not on WebGPU"], None)


def test_an_artifact_for_the_web_runs_on_the_cpu_here(tiny_web_float: Path) -> None:
    assert prove(open_artifact(tiny_web_float), [[3]]) == (["run here on ONNX Runtime's CPU, not on WebGPU"], None)


@pytest.mark.webgpu
def test_the_plugin_gives_the_cpus_tokens(
    tiny_webgpu_float: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of all lengths up to one of several pieces."""
    lab = software_vulkan(tmp_path, monkeypatch)
    texts = ["The lamp in the hall, the door and the window. " * count for count in range(1, 6)]
    answers = []
    device = open_device_runtime(tiny_webgpu_float, "gpu", lab=lab, say=print)
    here = open_runtime(tiny_webgpu_float, engine=open_onnx)
    for runtime in (device, here):
        with contextlib.closing(runtime):
            answers.append(
                [
                    [event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)]
                    for text in texts
                    for request in [GenerateRequest(prompt=text, max_new_tokens=8, ignore_stop_ids=True)]
                ]
            )
    assert answers[0] == answers[1]


PLACE = """
import json, sys
from pathlib import Path
from export.artifact import open_artifact
from runtimes.engines import webgpu
from runtimes.engines.engine import Graphics
engine = webgpu.open_webgpu(open_artifact(Path(sys.argv[1])), None, graphics=Graphics(adapter="software"))
import numpy as np
logits = engine.forward(list(range(3, 13)), 0)
parts = [part.copy() for part in engine.read_cache(10)]
engine.write_cache(parts, 10)
again = engine.read_cache(10)
same = all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))
print(json.dumps([engine.accelerator, same, logits.tolist()]))
"""


PLACED = """
import sys
import onnxruntime
from runtimes.engines import webgpu
device = webgpu.choose_device(webgpu.list_devices(), "software")
options = onnxruntime.SessionOptions()
options.log_severity_level = 0
options.add_provider_for_devices([device.handle], {})
onnxruntime.InferenceSession(sys.argv[1], options)
"""


@pytest.mark.webgpu
def test_only_lengths_are_computed_on_the_cpu(
    longrope_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the provider's own log, as the manifest says."""
    software_vulkan(tmp_path, monkeypatch)
    monkeypatch.setenv(ALLOW_SOFTWARE, "1")
    request = ExportRequest(checkpoint=str(longrope_checkpoint), out=tmp_path / "out", target="webgpu",
                            scheme="int4-b32", activations="float32", context_tokens=160)  # fmt: skip
    artifact = export_model(request)
    command = [sys.executable, "-c", PLACED, str(artifact.path("model.onnx"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    placements = read_placements(done.stderr)
    on_cpu = Counter(each.operator for each in placements if each.provider == "CPUExecutionProvider")
    assert {each.provider for each in placements} == {PROVIDER, "CPUExecutionProvider"}
    outside = [each.node for each in placements if each.provider != PROVIDER]
    assert [node for node in outside if not node.startswith(WEBGPU_LENGTHS)] == []
    listed = artifact.manifest.coverage
    assert set(on_cpu) <= set(listed["CPUExecutionProvider"])
    assert listed[PROVIDER]["GroupQueryAttention"] == listed[PROVIDER]["RotaryEmbedding"] / 2 == 2


@pytest.mark.webgpu
def test_the_logits_are_the_cpus(tiny_webgpu_float: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    software_vulkan(tmp_path, monkeypatch)
    command = [sys.executable, "-c", PLACE, str(tiny_webgpu_float)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    accelerator, same, logits = json.loads(done.stdout)
    assert same and accelerator.startswith("WebGPU on software")
    assert "phi-edge: WebGPU on software" in done.stderr
    expected = open_onnx(open_artifact(tiny_webgpu_float), None).forward(list(range(3, 13)), 0)
    assert max(abs(ours - theirs) for ours, theirs in zip(logits, expected.tolist(), strict=True)) < 1e-3


TINY = {"float32": "tiny_web", "float16": "tiny_web_half"}
REAL = pytest.mark.real


@pytest.mark.webgpu
@pytest.mark.parametrize(
    ("model", "activations", "tokens", "deviations", "near_ties"),
    [
        ("tiny", "float32", 8, 0.0, 0),
        ("tiny", "float16", 8, 0.1, 1),
        pytest.param("smollm2", "float32", 4, 0.0, 0, marks=REAL),
        pytest.param("smollm2", "float16", 2, 0.2, 2, marks=REAL),
    ],
)
def test_both_float_types_compute_what_the_cpu_does(
    model: str,
    activations: str,
    tokens: int,
    deviations: float,
    near_ties: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On lavapipe, in 4 bits: logits, the greedy tokens after 20 prompts, and where each node runs. `deviations` bounds
    float16's logits. The CPU computes a real model in float32, because its float16 takes four times as long."""
    software_vulkan(tmp_path, monkeypatch, lavapipe())
    if model == "tiny":
        folder, texts = request.getfixturevalue(TINY[activations]), held_out_prompts(20)
        reference = folder
    else:
        real_web = request.getfixturevalue("real_web")
        folder, texts = real_web(activations), twenty_questions()
        reference = real_web("float32")
    plan = Plan(adapter="software", lengths=())
    (row,) = check(open_artifact(folder), model, "webgpu", plan, texts, tokens, open_artifact(reference))
    assert not row.error and row.difference is not None and row.spread is not None
    assert row.difference < (1e-3 if activations == "float32" else deviations * row.spread)
    # Rounding decides where the CPU's two best logits are nearly equal.
    assert row.prompts == 20 and row.equal == 20 - len(row.gaps) and len(row.gaps) <= near_ties, row
    assert all(gap <= 2 * row.difference for gap in row.gaps), row
    assert row.nodes.keys() == {PROVIDER, "CPUExecutionProvider"} and len(row.outside) == 6
    assert [node for node in row.outside if not node.startswith(WEBGPU_LENGTHS)] == []


def test_the_probe_is_a_graph_of_one_node() -> None:
    for name, kind in (("float16", onnx.TensorProto.FLOAT16), ("float32", onnx.TensorProto.FLOAT)):
        numbers, one = (helper.make_tensor_value_info(*each) for each in (("x", kind, ["n"]), ("y", kind, [1])))
        place = helper.make_tensor_value_info("i", onnx.TensorProto.INT64, [1])
        graph = helper.make_graph([helper.make_node("Gather", ["x", "i"], ["y"])], "g", [numbers, place], [one])
        model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        assert model.SerializeToString() == GATHER[name]


@pytest.mark.webgpu
def test_what_the_adapter_cannot_do_is_refused_before_the_weights_are_loaded(
    tiny_web_half: Path, tiny_web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SwiftShader has no float16, and buffers of up to 1 GiB. Without its weights an artifact cannot be loaded."""
    lab = software_vulkan(tmp_path, monkeypatch)
    for source, context_tokens, message in (
        (tiny_web_half, 256, "has no float16, which this artifact needs; export it with --activations float32"),
        (tiny_web, 5_000_000, "a layer's keys for 5000000 tokens have 1280000000 bytes, which software on"),
    ):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        size = (folder / "model.onnx").stat().st_size
        (folder / "model.onnx").write_bytes(bytes(size))
        manifest = json.loads((folder / "manifest.json").read_text())
        changed = manifest | {"target": "webgpu", "context_tokens": context_tokens}
        (folder / "manifest.json").write_text(json.dumps(changed))
        done = CliRunner().invoke(main, ["run", str(folder), "Hi", "--device", "gpu", "--lab", str(lab)])
        assert done.exit_code == 2 and message in done.output, done.output
