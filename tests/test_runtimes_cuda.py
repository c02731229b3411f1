"""CUDA without a GPU: what is chosen and refused, from made-up facts and a driver of a few lines of C; and the engine's
own part, the recorded step included, over ONNX Runtime's CPU."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from ci.variants import make_checkpoint
from export.artifact import Artifact, open_artifact
from export.errors import OptionError
from export.pipeline import export_model
from export.request import ExportRequest
from runtimes.engines import cuda
from runtimes.engines.cuda import PROVIDER, CudaEngine, check_gpu, check_library, choose_gpu, open_cuda, refused_here
from runtimes.engines.engine import Graphics
from runtimes.engines.onnx_engine import load_session, model_file, open_onnx
from runtimes.errors import EngineError
from runtimes.proof import prove
from runtimes.registry import open_runtime
from runtimes.system.cuda import Gpu, list_gpus

if TYPE_CHECKING:
    from runtimes.engines.engine import Logits

H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=85_000_000_000, capability=(9, 0))
SMALL = Gpu(name="Quadro T400", memory_bytes=2_000_000, capability=(7, 5))
RTX = Gpu(name="NVIDIA GeForce RTX 5090", memory_bytes=32_000_000_000, capability=(12, 0))
DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return flags; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int place) { *device = 7 + place; return 0; }
int cuDeviceGetName(char *to, int size, int device) { strncpy(to, device == 7 ? "first" : "second", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)device << 32; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? device + 1 : 6; return 0; }
"""


def test_the_drivers_own_library_is_asked(tmp_path: Path) -> None:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("needs a C compiler")
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
    source.write_text(DRIVER)
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True, timeout=60)
    first, second = list_gpus(str(library))
    assert first == Gpu(name="first", memory_bytes=7 << 32, capability=(8, 6))
    assert second.describe() == "second (34.4 GB, compute capability 9.6)"
    assert list_gpus(str(tmp_path / "none")) == []


def test_the_first_gpu_or_the_one_that_is_named() -> None:
    assert [choose_gpu([H100, RTX], wanted) for wanted in (None, "1", "geforce", "9.0")] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("gpus", "wanted", "message"),
    [
        ([], None, "no NVIDIA GPU with its driver, so this would run on the CPU; export for --target cpu, or allow"),
        ([H100, RTX], "nvidia", r"GPU 'nvidia' matches 2; there are: 0: NVIDIA H100 80GB HBM3 \(85.0 GB, compute"),
        ([H100], "1", "GPU '1' matches 0"),
    ],
)
def test_no_gpu_is_no_silent_cpu(gpus: Sequence[Gpu], wanted: str | None, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        choose_gpu(gpus, wanted)


@pytest.mark.parametrize(
    ("installed", "fix"),
    [
        (["onnxruntime"], "no CUDA provider; pip uninstall onnxruntime, then pip install 'phi-edge[cuda]'"),
        (
            ["onnxruntime", "onnxruntime-gpu"],
            "pip uninstall onnxruntime, then pip install --force-reinstall --no-deps onnxruntime-gpu",
        ),
    ],
)
def test_an_onnxruntime_without_cuda_is_named(installed: Sequence[str], fix: str) -> None:
    check_library([PROVIDER], installed)
    with pytest.raises(EngineError) as error:
        check_library(["CPUExecutionProvider"], installed)
    assert str(error.value).endswith(fix)


def test_what_does_not_fit_the_gpu_is_refused_before_it_is_loaded(tiny_cuda: Path) -> None:
    manifest = open_artifact(tiny_cuda).manifest
    check_gpu(manifest, RTX)
    with pytest.raises(EngineError, match=r"the KV cache of 256 tokens need 0.0 GB, and the GPU is Quadro T400"):
        check_gpu(manifest, SMALL)
    sparse = dataclasses.replace(manifest, coverage={PROVIDER: {"SparseAttention": 1}})
    check_gpu(sparse, H100)
    with pytest.raises(
        EngineError, match=r"for the compute capabilities 7.5, 8.0, 8.6, 8.9, 9.0, and the GPU is NVIDIA"
    ):
        check_gpu(sparse, RTX)


def test_the_cpu_takes_over_only_where_it_is_allowed(
    tiny_cuda: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda, "list_gpus", list)
    artifact = open_artifact(tiny_cuda)
    with pytest.raises(EngineError, match="no NVIDIA GPU"):
        open_runtime(artifact)
    assert open_cuda(artifact, 1, graphics=Graphics(allow_cpu=True)).accelerator is None
    assert "phi-edge: on the CPU: no NVIDIA GPU" in capfd.readouterr().err
    # With a GPU and an onnxruntime for the CPU, too.
    monkeypatch.setattr(cuda, "list_gpus", lambda: [H100])
    with pytest.raises(EngineError, match="the onnxruntime that is installed has no CUDA provider"):
        open_runtime(artifact)
    assert prove(artifact, [[3, 4], [5]]) == (["run here on ONNX Runtime's CPU, not on CUDA"], None)


def test_a_recorded_step_computes_the_same(tiny_cuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the whole mask and buffers that stay in place. Here they are the CPU's, which runs each step anew."""
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    artifact = open_artifact(tiny_cuda)
    engine = CudaEngine(load_session(model_file(artifact), 1), artifact, 0, H100)
    plain = open_onnx(artifact, 1)
    ids = np.random.default_rng(0).integers(3, 500, 40).tolist()
    for start, count in ((0, 1), (1, 1), (0, 20), (20, 1), (21, 1), (22, 8), (30, 1), (25, 1)):
        ours, theirs = (each.forward(ids[start : start + count], start) for each in (engine, plain))
        assert np.array_equal(ours, theirs)
    parts = [part.copy() for part in engine.read_cache(26)]
    engine.write_cache(parts, 26)
    assert all(np.array_equal(one, other) for one, other in zip(parts, engine.read_cache(26), strict=True))
    with pytest.raises(EngineError, match="beyond the context of 256 tokens"):
        engine.forward([1], 256)
    assert engine.accelerator == f"CUDA on {H100.describe()}"
    engine.close()


def test_long_rope_switches(longrope_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below, across and beyond the switch at 64 tokens, by recorded steps too: whose mask is as wide as the context."""
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    web, ours = (
        export_model(
            ExportRequest(
                checkpoint=str(longrope_checkpoint), out=tmp_path / target, target=target, scheme="int4-b32",
                context_tokens=160,
            )
        )
        for target in ("webgpu", "cuda")
    )  # fmt: skip
    assert set(ours.manifest.coverage["CPUExecutionProvider"]) == {"Cast", "Gather"}
    engines = [CudaEngine(load_session(model_file(ours), 1), ours, 0, H100), open_onnx(ours, 1), open_onnx(web, 1)]
    assert isinstance(engines[0], CudaEngine) and engines[0]._step is not None
    ids = np.random.default_rng(0).integers(3, 500, 90).tolist()
    short, long_factors = (engines[1].forward(ids[:20], 0, long=long).copy() for long in (False, True))
    assert float(np.abs(short - long_factors).max()) > 0.2
    for pieces, long in (
        ([20, 1, 1], False),
        ([40, 1, 23, 26], True),
        ([63, 1, 1, 1], True),
        ([90], True),
        ([64], False),
    ):
        start = 0
        for size in pieces:
            recorded, whole, expected = (each.forward(ids[start : start + size], start, long=long) for each in engines)
            assert np.array_equal(recorded, whole)
            assert float(np.abs(whole - expected).max()) < 0.05  # half precision
            start += size


def test_each_node_of_phi_3_small_has_its_own_name_beyond_the_switch(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("phi-3-small-128k", tmp_path / "small")
    request = ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", target="cuda", scheme="int4-b32")
    artifact = export_model(dataclasses.replace(request, context_tokens=8448))
    names = [node.name for node in onnx.load(model_file(artifact), load_external_data=False).graph.node]
    assert len(names) == len(set(names)) and "/model/layers.0/attn/SparseAttention" in " ".join(names)


def test_after_others_block_sparse_attention_takes_one_token_at_a_time(
    tiny_cuda: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "_sparse", lambda _: True)
    artifact = open_artifact(tiny_cuda)
    engine = CudaEngine(load_session(model_file(artifact), 1), artifact, 0, H100)
    assert not engine.continues
    steps: list[int] = []
    assert engine._step is not None
    plain = engine._step.forward

    def step(id: int, start: int) -> Logits:
        steps.append(start)
        return plain(id, start)

    monkeypatch.setattr(engine._step, "forward", step)
    whole = open_onnx(artifact, 1)
    for each in (engine, whole):
        each.forward(list(range(3, 13)), 0)
    logits = [each.forward([20, 21, 22], 10) for each in (engine, whole)]
    assert steps == [10, 11, 12] and float(np.abs(logits[0] - logits[1]).max()) < 0.1


def small(folder: Path, out: Path, context_tokens: int, **changes: int) -> Artifact:
    checkpoint = make_checkpoint("phi-3-small-8k", folder, **changes)
    return export_model(
        ExportRequest(
            checkpoint=str(checkpoint), out=out, target="cuda", scheme="int4-b32", context_tokens=context_tokens
        )
    )


def test_phi_3_small_has_its_own_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "list_gpus", list)
    artifact = small(tmp_path / "small", tmp_path / "sparse", 2048)
    assert artifact.manifest.coverage[PROVIDER]["SparseAttention"] == 1
    assert artifact.manifest.engine["provider_options"] == {"enable_cuda_graph": "0"}
    refusal = refused_here(artifact.manifest)
    assert refusal is not None and refusal.startswith("ONNX Runtime's CPU has Phi-3-small's attention in float32 only")
    assert prove(artifact, [[3, 4], [5]]) == ([f"not run before it was sealed: {refusal}"], None)
    # Where nothing is left out, it is the usual operator.
    artifact = small(tmp_path / "dense_checkpoint", tmp_path / "dense", 1024)
    assert "SparseAttention" not in artifact.manifest.coverage[PROVIDER]
    assert prove(artifact, [[3, 4], [5]]) == (["run here on ONNX Runtime's CPU, not on CUDA"], None)
    with pytest.raises(OptionError, match="has heads of 16 numbers and blocks of 64 tokens; CUDA's SparseAttention"):
        small(tmp_path / "narrow", tmp_path / "out", 2048, hidden_size=128, num_attention_heads=8)
