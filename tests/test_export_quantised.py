"""Checkpoints that are quantised already: their codes, scales and zero points are the artifact's; or refused by name.

The checkpoints are packed here, code by code, after the formats' own descriptions.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.artifact import Artifact
from export.checkpoint.open import open_checkpoint
from export.checkpoint.quantised import QuantisedTensor
from export.errors import AdapterError, CheckpointError, OptionError
from export.job import resolve
from export.pipeline import export_model
from export.request import AdapterChoice, ExportRequest
from export.verify.conformance import examine
from export.weights.dequantize import read_kind, read_weights, unpack
from export.weights.layout_file import read_layout
from fakes.hub import FakeHub, take_for_real
from phi_edge.main import main
from runtimes.subject import open_subject

CONTEXT = 64
GROUP = 32
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


@dataclass(frozen=True)
class Matrix:
    """A linear layer: codes [rows, columns], scales and zeros [rows, groups]."""

    codes: np.ndarray[Any, Any]
    scales: Tensor
    zeros: np.ndarray[Any, Any]

    def weight(self) -> Tensor:
        """As the quantising program's own kernels multiply with it."""
        group = self.codes.shape[1] // self.zeros.shape[1]
        levels = self.codes.astype(np.float32) - np.repeat(self.zeros, group, axis=1)
        return torch.from_numpy(levels) * self.scales.float().repeat_interleave(group, dim=1)


def int32(nibbles: list[int]) -> int:
    """Eight codes in one number, the first in the lowest bits."""
    value = sum(int(nibble) << 4 * place for place, nibble in enumerate(nibbles))
    return value - (1 << 32) if value >= 1 << 31 else value


def packed_down(codes: np.ndarray[Any, Any], order: list[int] | None = None) -> Tensor:
    """[n, m] -> [n / 8, m]: each column in numbers of eight."""
    places = order or list(range(8))
    rows, columns = codes.shape
    numbers = [
        [int32([codes[8 * row + place, column] for place in places]) for column in range(columns)]
        for row in range(rows // 8)
    ]
    return torch.tensor(numbers, dtype=torch.int32)


def gptq(matrix: Matrix, zero_offset: int) -> dict[str, Tensor]:
    columns = matrix.codes.shape[1]
    return {
        "qweight": packed_down(matrix.codes.T),
        "qzeros": packed_down(matrix.zeros - zero_offset).T.contiguous(),
        "scales": matrix.scales.T.contiguous(),
        "g_idx": torch.tensor([column // GROUP for column in range(columns)], dtype=torch.int32),
        "bias": torch.zeros(len(matrix.codes), dtype=torch.float16),
    }


def awq(matrix: Matrix) -> dict[str, Tensor]:
    return {
        "qweight": packed_down(matrix.codes, AWQ_ORDER).T.contiguous(),
        "qzeros": packed_down(matrix.zeros, AWQ_ORDER).T.contiguous(),
        "scales": matrix.scales.T.contiguous(),
    }


def compressed(matrix: Matrix, symmetric: bool) -> dict[str, Tensor]:
    zeros = {} if symmetric else {"weight_zero_point": packed_down(matrix.zeros)}
    return {
        "weight_packed": packed_down(matrix.codes.T).T.contiguous(),
        "weight_scale": matrix.scales,
        "weight_shape": torch.tensor(matrix.codes.shape, dtype=torch.int64),
        **zeros,
    }


@dataclass(frozen=True)
class Kind:
    """A way to save a quantised checkpoint: config.json's part, whether symmetric, and a layer's tensors."""

    settings: Mapping[str, Any]
    symmetric: bool
    tensors: Callable[[Matrix], dict[str, Tensor]]
    scales: torch.dtype = torch.float16


def compressed_settings(**changes: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": True}
    group = {"targets": ["Linear"], "weights": weights | changes, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": GROUP, "data_type": "int"}
KINDS: dict[str, Kind] = {
    "gptq": Kind(GPTQ, False, lambda matrix: gptq(matrix, 1)),
    "gptq symmetric": Kind(GPTQ | {"sym": True}, True, lambda matrix: gptq(matrix, 1)),
    "gptq v2": Kind(GPTQ | {"checkpoint_format": "gptq_v2"}, False, lambda matrix: gptq(matrix, 0)),
    "awq": Kind(AWQ, False, awq),
    "auto-round as gptq": Kind(
        AUTO_ROUND | {"packing_format": "auto_round:auto_gptq"}, True, lambda matrix: gptq(matrix, 1)
    ),
    "auto-round as awq": Kind(AUTO_ROUND | {"packing_format": "auto_round:auto_awq"}, False, awq),
    "compressed-tensors": Kind(
        compressed_settings(), True, lambda matrix: compressed(matrix, symmetric=True), torch.bfloat16
    ),
    "compressed-tensors zero points": Kind(
        compressed_settings(symmetric=False), False, lambda matrix: compressed(matrix, symmetric=False)
    ),
}


@dataclass(frozen=True)
class Quantised:
    """A checkpoint, the same in float, and what was packed, by the names of the float checkpoint's tensors."""

    folder: Path
    float_folder: Path
    matrices: Mapping[str, Matrix]


@pytest.fixture(scope="module")
def quantised(random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """quantised(kind, model_type): a random model of two layers."""

    @functools.cache
    def make(kind: str, model_type: str = "phi3") -> Quantised:
        float_folder = random_checkpoint(sliding_window=None)
        if model_type == "llama":
            as_llama(float_folder)
        folder = tmp_path_factory.mktemp("quantised") / "checkpoint"
        shutil.copytree(float_folder, folder)
        matrices = quantise(folder, float_folder, KINDS[kind])
        return Quantised(folder, float_folder, matrices)

    return make


def as_llama(folder: Path) -> None:
    """The same weights under a Llama's names."""
    named = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        path, end = name.removesuffix(".weight").rpartition(".")[::2]
        others = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}.get(end)
        sizes = [128, 64, 64] if end == "qkv_proj" else [len(weight) // 2] * 2
        for other, part in zip(others, weight.split(sizes), strict=True) if others else [(end, weight)]:
            named[f"{path}.{other}.weight" if path else name] = part.contiguous()
    save_file(named, folder / "model.safetensors")
    content = json.loads((folder / "config.json").read_text())
    kept = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "dtype"}
    kept |= {"num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id"}
    config = {key: content[key] for key in kept if key in content} | {"model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))


def quantise(folder: Path, float_folder: Path, kind: Kind) -> dict[str, Matrix]:
    """Replace every linear layer but the head with random codes, in one folder packed, in the other in float."""
    random = np.random.default_rng(0)
    weights = load_file(folder / "model.safetensors")
    packed, exact, matrices = dict(weights), dict(weights), dict[str, Matrix]()
    for name, weight in weights.items():
        if not name.endswith("proj.weight"):
            continue
        groups = (weight.shape[0], weight.shape[1] // GROUP)
        matrices[name] = matrix = Matrix(
            random.integers(0, 16, weight.shape),
            torch.from_numpy(random.uniform(0.01, 0.03, groups)).to(kind.scales),
            np.full(groups, 8) if kind.symmetric else random.integers(1, 16, groups),
        )
        del packed[name]
        packed |= {name.removesuffix("weight") + part: tensor for part, tensor in kind.tensors(matrix).items()}
        exact[name] = matrix.weight()
    save_file(packed, folder / "model.safetensors")
    save_file({name: tensor.float() for name, tensor in exact.items()}, float_folder / "model.safetensors")
    change_config(folder, quantization_config=dict(kind.settings))
    return matrices


def change_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def request(checkpoint: Path, out: Path, format: str = "onnx", scheme: str = "int4-b64-e8", **more: Any) -> Any:
    return ExportRequest(
        checkpoint=str(checkpoint), out=out, format=format, scheme=scheme, context_tokens=CONTEXT, **more
    )


def parts_of(name: str, matrices: Mapping[str, Matrix]) -> list[Matrix]:
    """What was packed for a tensor of the model, which may be several layers of the checkpoint."""
    joined = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    end = name.split(".")[-2]
    names = [name] if name in matrices else [name.replace(end, other) for other in joined[end]]
    return [matrices[other] for other in names]


def assert_imported(artifact: Artifact, matrices: Mapping[str, Matrix], *, symmetric: bool) -> None:
    """Code for code, scale for scale, zero point for zero point."""
    layout = {tensor.name: tensor for tensor in read_layout(artifact) if tensor.name.endswith("proj.weight")}
    assert len(layout) == 8  # four in each layer, in the artifact
    for name, tensor in layout.items():
        parts, (rows, columns) = parts_of(name, matrices), tensor.shape
        assert (tensor.bits, tensor.block_size, tensor.zero_points) == (4, GROUP, not symmetric)
        packed, slot = read_kind(artifact.folder, tensor, "codes")
        codes = unpack(packed, 4, slot).reshape(rows, columns) + 8
        assert np.array_equal(codes, np.concatenate([part.codes for part in parts]))
        scales = read_kind(artifact.folder, tensor, "scales")[0].float().reshape(rows, -1)
        assert torch.equal(scales, torch.cat([part.scales for part in parts]).float())
        if not symmetric:
            points, slot = read_kind(artifact.folder, tensor, "zero_points")
            zeros = unpack(points, 4, slot).reshape(rows, -1)[:, : columns // GROUP] + 8
            assert np.array_equal(zeros, np.concatenate([part.zeros for part in parts]))
    weights = read_weights(artifact)
    assert all(
        torch.equal(weights[name], torch.cat([part.weight() for part in parts_of(name, matrices)])) for name in layout
    )
    scheme = artifact.manifest.scheme
    assert (scheme.method, scheme.bits, scheme.block_size, scheme.symmetric) == ("imported", 4, GROUP, symmetric)
    assert scheme.embedding_bits == 8 and not scheme.exceptions
    assert "proj" not in artifact.manifest.loss.worst_group_tensor


@pytest.fixture(scope="module")
def imported(
    quantised: Callable[..., Quantised], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Artifact]:
    """imported(kind, model_type): the checkpoint as an ONNX artifact, exported once."""

    @functools.cache
    def make(kind: str, model_type: str) -> Artifact:
        out = tmp_path_factory.mktemp("imported") / "out"
        return export_model(request(quantised(kind, model_type).folder, out))

    return make


@pytest.mark.parametrize(
    ("kind", "model_type"), [*((kind, "phi3") for kind in KINDS), ("gptq", "llama"), ("awq", "llama")]
)
def test_onnx_has_the_checkpoints_codes(
    quantised: Callable[..., Quantised], imported: Callable[[str, str], Artifact], kind: str, model_type: str
) -> None:
    symmetric = KINDS[kind].symmetric
    assert_imported(imported(kind, model_type), quantised(kind, model_type).matrices, symmetric=symmetric)


@pytest.mark.parametrize(("kind", "model_type"), [("gptq", "phi3"), ("gptq symmetric", "phi3"), ("awq", "llama")])
def test_gives_the_logits_of_the_dequantised_model(
    quantised: Callable[..., Quantised], imported: Callable[[str, str], Artifact], kind: str, model_type: str
) -> None:
    assert examine(imported(kind, model_type), str(quantised(kind, model_type).folder), open_subject).failures == []


def test_directml_has_the_checkpoints_codes(quantised: Callable[..., Quantised], tmp_path: Path) -> None:
    checkpoint = quantised("gptq")
    artifact = export_model(request(checkpoint.folder, tmp_path / "out", target="windows-directml"))
    assert_imported(artifact, checkpoint.matrices, symmetric=False)


def test_gguf_has_the_weights_of_a_symmetric_one(quantised: Callable[..., Quantised], tmp_path: Path) -> None:
    """Each of its groups is several blocks with one scale."""
    checkpoint = quantised("gptq symmetric")
    weights = read_weights(export_model(request(checkpoint.folder, tmp_path / "out", "gguf", "int4-b32-e8")))
    names = [name for name in weights if name.endswith("proj.weight")]
    assert len(names) == 8
    for name in names:
        parts = parts_of(name, checkpoint.matrices)
        assert torch.equal(weights[name], torch.cat([part.weight() for part in parts]))


def test_executorch_has_the_codes_of_a_symmetric_one(quantised: Callable[..., Quantised], tmp_path: Path) -> None:
    checkpoint = quantised("compressed-tensors", "llama")
    artifact = export_model(request(checkpoint.folder, tmp_path / "out", "executorch", "int4-b32-e8"))
    assert_imported(artifact, checkpoint.matrices, symmetric=True)
    assert examine(artifact, str(checkpoint.folder), open_subject).failures == []


@pytest.mark.parametrize(("kind", "model_type"), [("gptq", "phi3"), ("compressed-tensors", "llama")])
def test_in_float_it_is_the_dequantised_model(
    quantised: Callable[..., Quantised], kind: str, model_type: str, tmp_path: Path
) -> None:
    checkpoint = quantised(kind, model_type)
    ours = export_model(request(checkpoint.folder, tmp_path / "ours", scheme="fp32"))
    theirs = export_model(request(checkpoint.float_folder, tmp_path / "theirs", scheme="fp32"))
    assert ours.manifest.files["model.onnx.data"] == theirs.manifest.files["model.onnx.data"]
    report = examine(ours, str(checkpoint.folder), open_subject)
    assert report.failures == [] and report.max_difference < 1e-3


def test_a_quantised_head_keeps_its_codes(quantised: Callable[..., Quantised], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(quantised("gptq").folder, folder)
    weights, random = load_file(folder / "model.safetensors"), np.random.default_rng(1)
    rows, columns = weights.pop("lm_head.weight").shape
    groups = (rows, columns // GROUP)
    head = Matrix(
        random.integers(0, 16, (rows, columns)), torch.full(groups, 0.01).half(), random.integers(1, 16, groups)
    )
    weights |= {f"lm_head.{part}": tensor for part, tensor in gptq(head, 1).items()}
    save_file(weights, folder / "model.safetensors")
    artifact = export_model(request(folder, tmp_path / "out"))
    assert torch.equal(read_weights(artifact)["lm_head.weight"], head.weight())
    assert artifact.manifest.scheme.exceptions == {"lm_head.weight": "4 bits, blocks of 32, zero points"}


def test_rows_are_read_from_anywhere(quantised: Callable[..., Quantised]) -> None:
    for kind in ("gptq", "awq", "compressed-tensors zero points"):
        checkpoint = quantised(kind, "llama" if kind == "awq" else "phi3")
        name = "model.layers.1.self_attn.qkv_proj.weight"
        tensor = open_checkpoint(str(checkpoint.folder)).tensors[name]
        assert isinstance(tensor, QuantisedTensor)
        parts = parts_of(name, checkpoint.matrices)
        codes, zeros = (np.concatenate([getattr(part, kind) for part in parts]) for kind in ("codes", "zeros"))
        for start, stop in ((0, 256), (3, 5), (125, 203), (191, 193), (255, 256)):
            rows = tensor.code_rows(start, stop)
            assert np.array_equal(rows.codes, codes[start:stop]) and np.array_equal(rows.zeros, zeros[start:stop])


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"quant_method": "bitsandbytes"}, "quantised by bitsandbytes, whose codes cannot be imported; allowed: gptq"),
        ({"quant_method": "fp8"}, "quantised by fp8"),
        ({}, "quantised by None"),
        (GPTQ | {"bits": 3}, "quantised by gptq, its number of bits is 3"),
        (GPTQ | {"bits": 8}, "number of bits is 8"),
        (GPTQ | {"group_size": -1}, r"group_size is -1 \(a scale for each channel\)"),
        (GPTQ | {"group_size": 512}, "group_size is 512, .*; allowed: 16, 32, 64, 128, 256"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is marlin"),
        (GPTQ | {"is_marlin_format": True}, "checkpoint_format is marlin"),
        (AWQ | {"version": "gemv"}, "version is gemv"),
        (AWQ | {"bits": 3}, "quantised by awq, its number of bits is 3"),
        (AUTO_ROUND | {"packing_format": "auto_round"}, "packing_format is auto_round"),
        (AUTO_ROUND | {"packing_format": "auto_round:auto_gptq", "bits": 2}, "number of bits is 2"),
        (compressed_settings(num_bits=8), "quantised by compressed-tensors, its number of bits is 8"),
        (compressed_settings(type="float"), "weights is float by group"),
        (compressed_settings(strategy="channel"), "a scale for each channel"),
        (compressed_settings() | {"format": "marlin-24"}, "format is marlin-24"),
        (compressed_settings() | {"transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
        (compressed_settings() | {"config_groups": {}}, "number of config_groups is 0"),
        (compressed_settings() | {"config_groups": [1]}, r"config_groups is \[1\], .* allowed: a table"),
        (compressed_settings() | {"config_groups": {"group_0": {"weights": "int4"}}}, "weights is int4"),
        (compressed_settings() | {"transform_config": "x"}, "transform_config is x"),
        (GPTQ | {"checkpoint_format": ["gptq"]}, r"checkpoint_format is \['gptq'\]"),
        (GPTQ | {"bits": "4"}, "number of bits is '4'"),
        (AUTO_ROUND | {"packing_format": "auto_round:auto_gptq", "act_bits": 8}, "act_bits is 8"),
    ],
)
def test_what_cannot_be_imported_is_refused_by_name(
    quantised: Callable[..., Quantised], settings: dict[str, Any], part: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(quantised("gptq").folder, folder)
    change_config(folder, quantization_config=settings)
    with pytest.raises(CheckpointError, match=part):
        open_checkpoint(str(folder))


def changed(source: Path, folder: Path, **changes: Tensor | None) -> Path:
    """The checkpoint with other tensors in the first layer's down_proj."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    for part, tensor in changes.items():
        del weights[f"model.layers.0.mlp.down_proj.{part}"]
        if tensor is not None:
            weights[f"model.layers.0.mlp.down_proj.{part}"] = tensor
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"g_idx": torch.arange(320).flip(0).int() // GROUP}, r"down_proj: its groups are in the order of activations"),
        ({"qweight": torch.zeros(80, 128, dtype=torch.int32)}, r"down_proj.qweight: has shape \[80, 128\]; 4 bits"),
        ({"qzeros": torch.full((10, 16), -1, dtype=torch.int32)}, "down_proj.qzeros: has a zero point of 16"),
        ({"scales": None}, "down_proj: has no scales, which gptq stores"),
        ({"scales": torch.zeros(10, 128, dtype=torch.int32)}, "down_proj.scales: has type torch.int32"),
        ({"bias": torch.ones(128)}, "down_proj.bias .* is not part of a phi3 model"),
        (
            {"qweight": torch.zeros(40, 128, dtype=torch.int64)},
            "down_proj.qweight: has type torch.int64; allowed",
        ),
        ({"qzeros": torch.zeros(10, 16, dtype=torch.uint8)}, "down_proj.qzeros: has type torch.uint8; allowed: int32"),
    ],
)
def test_a_layer_that_cannot_be_repacked_is_refused_by_name(
    quantised: Callable[..., Quantised], changes: dict[str, Tensor | None], part: str, tmp_path: Path
) -> None:
    folder = changed(quantised("gptq").folder, tmp_path / "checkpoint", **changes)
    with pytest.raises(CheckpointError, match=part):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("kind", "settings", "changes", "part"),
    [
        (
            "compressed-tensors zero points",
            compressed_settings(symmetric=False),
            {"weight_zero_point": None},
            "down_proj: has no weight_zero_point, which compressed-tensors stores",
        ),
        (
            "compressed-tensors",
            compressed_settings(),
            {"weight_shape": torch.tensor([1, 2])},
            r"down_proj.weight_shape: says \[1, 2\], and config.json \[128, 320\]",
        ),
        (
            "gptq",
            {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
            {"g_idx": None},
            "down_proj: has no g_idx, which gptq stores",
        ),
    ],
)
def test_what_the_settings_promise_must_be_there(
    quantised: Callable[..., Quantised],
    kind: str,
    settings: dict[str, Any],
    changes: dict[str, Tensor | None],
    part: str,
    tmp_path: Path,
) -> None:
    folder = changed(quantised(kind).folder, tmp_path / "checkpoint", **changes)
    change_config(folder, quantization_config=settings)
    with pytest.raises(CheckpointError, match=part):
        open_checkpoint(str(folder))


def test_a_scheme_beside_codes_that_are_kept_is_a_note(quantised: Callable[..., Quantised], tmp_path: Path) -> None:
    artifact = export_model(request(quantised("gptq").folder, tmp_path / "out"))
    assert "--scheme int4-b64-e8 is for what the checkpoint has in float; its quantised layers keep their codes" in (
        artifact.manifest.notes
    )


def test_half_a_matrix_is_refused(quantised: Callable[..., Quantised], tmp_path: Path) -> None:
    checkpoint, folder = quantised("awq", "llama"), tmp_path / "checkpoint"
    shutil.copytree(checkpoint.folder, folder)
    weights, name = load_file(folder / "model.safetensors"), "model.layers.0.self_attn.k_proj"
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith(name)}
    save_file(weights | {f"{name}.weight": torch.zeros(64, 128)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"q_proj.weight is quantised and .*k_proj.weight is not"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("kind", "format", "target", "part"),
    [
        ("gptq", "executorch", "android", "has zero points, so it is repacked exactly only into ONNX"),
        ("gptq symmetric", "executorch", "android", "has scales that bfloat16 does not hold exactly"),
        ("gptq", "gguf", "cpu", "has zero points, so ggml's block types cannot store it"),
    ],
)
def test_a_format_that_would_round_is_refused(
    quantised: Callable[..., Quantised], kind: str, format: str, target: str, part: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=part):
        resolve(request(quantised(kind).folder, tmp_path / "out", format, "int4-b32", target=target))


@pytest.mark.parametrize(
    ("scale", "format", "target", "part"),
    [
        (-1.0, "executorch", "android", "down_proj.weight: has scales that are not above 0"),
        (1e-30, "onnx", "windows-directml", "down_proj.weight: has scales that float16 does not hold exactly"),
        (float("nan"), "onnx", "cpu", "down_proj, its scales: holds weights that are not finite"),
    ],
)
def test_scales_that_a_target_lacks_are_refused(
    quantised: Callable[..., Quantised], scale: float, format: str, target: str, part: str, tmp_path: Path
) -> None:
    scales = torch.full((128, 10), scale, dtype=torch.bfloat16)
    folder = changed(quantised("compressed-tensors").folder, tmp_path / "checkpoint", weight_scale=scales)
    with pytest.raises(CheckpointError, match=part):
        resolve(request(folder, tmp_path / "out", format, "int4-b32", target=target))


def test_a_byte_budget_is_refused(quantised: Callable[..., Quantised], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="this checkpoint is quantised already"):
        resolve(request(quantised("gptq").folder, tmp_path / "out", max_bytes=10**7))


def test_an_adapter_is_refused(quantised: Callable[..., Quantised], tmp_path: Path) -> None:
    folder = quantised("gptq").folder
    with pytest.raises(
        AdapterError, match="is quantised already, and its codes cannot take an adapter; give the float"
    ):
        export_model(request(folder, tmp_path / "out", adapters=(AdapterChoice("adapter"),)))


@pytest.mark.parametrize("kind", ["gptq", "gptq symmetric", "awq", "compressed-tensors"])
def test_a_quantised_checkpoint_of_the_hub_is_judged_by_its_codes(
    quantised: Callable[..., Quantised], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Not by its outline, in which all tensors are zeros."""
    folder, words = quantised(kind).folder, ["--context", str(CONTEXT), "--quiet"]
    with FakeHub({"someone/quantised": folder}) as hub:
        take_for_real(hub, monkeypatch, tmp_path / "hf")
        done = CliRunner().invoke(main, ["export", "someone/quantised", str(tmp_path / "from-hub"), *words])
    assert done.exit_code == 0, done.output
    here = CliRunner().invoke(main, ["export", str(folder), str(tmp_path / "from-here"), *words])
    assert here.exit_code == 0, here.output
    data = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("from-hub", "from-here")]
    assert data[0] == data[1]


def test_what_cannot_be_imported_from_the_hub_is_not_downloaded(
    quantised: Callable[..., Quantised], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "eight"
    shutil.copytree(quantised("gptq").folder, folder)
    change_config(folder, quantization_config=GPTQ | {"bits": 8})
    with FakeHub({"someone/eight": folder}) as hub:
        take_for_real(hub, monkeypatch, tmp_path / "hf")
        done = CliRunner().invoke(main, ["export", "someone/eight", str(tmp_path / "out"), "--quiet"])
        sent = hub.sent.get("model.safetensors", 0)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert "quantised by gptq, its number of bits is 8" in done.stderr
    assert sent < (folder / "model.safetensors").stat().st_size / 2
