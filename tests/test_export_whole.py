"""The streamed exports against plain ones of the same weights, which hold the whole model.

Plain means: for ONNX the weights made in numpy and saved by the onnx library; for ExecuTorch the real weights in
the modules from the start, and the whole graph given to XNNPACK's own partitioner.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from export.artifact import Artifact, describe_files, seal
from export.job import resolve
from export.models.layers import SplitLinear, leaves
from export.models.shape import EMBEDDING, Config, on_meta
from export.pipeline import export_model
from export.request import ExportRequest
from export.to_executorch.internals import PlaceholderTags
from export.to_executorch.layers import part_rows
from export.to_executorch.pieces import Between, First, Last, Pieces
from export.to_executorch.quiet import quiet
from export.to_executorch.runner import Runner
from export.weights.slots import SlotId
from runtimes.api import GenerateRequest, Message, TokenEvent
from runtimes.registry import open_runtime

TINY = Path(__file__).parent.parent / "export" / "tiny"
CONTEXT = 1024  # within the window: with a longer one the attention has branches, which this test lowers no other way
PROMPTS = ["Turn off the lamp in the kitchen.", "What is 17 plus 26?", "How many grams are 7 kilograms?"]
Array = npt.NDArray[np.float32]


def quantise(weight: Array, bits: int, block: int, scale_type: torch.dtype) -> tuple[npt.NDArray[np.uint8], Array]:
    """Codes from 0 [rows, columns], and scales [rows, blocks]: of some scales, each block's best."""
    zero = 2 ** (bits - 1)
    blocks = weight.reshape(len(weight), -1, block)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    largest[largest == 0] = 1
    divisors = (7, 7.5, 8) if bits == 4 else (127,)
    tried = [torch.from_numpy(largest / np.float32(divisor)).to(scale_type).float().numpy() for divisor in divisors]
    levels = [np.clip(np.rint(blocks * (1 / scale)), -zero, zero - 1) for scale in tried]
    errors = [np.square(level * scale - blocks).sum(-1) for level, scale in zip(levels, tried, strict=True)]
    best = np.argmin(errors, axis=0)[None, ..., None]
    codes = (np.take_along_axis(np.stack(levels), best, 0)[0] + zero).astype(np.uint8).reshape(weight.shape)
    return codes, np.take_along_axis(np.stack(tried), best, 0)[0, ..., 0]


def checkpoint_weights(checkpoint: Path) -> dict[str, Array]:
    return {name: tensor.float().numpy() for name, tensor in load_file(checkpoint / "model.safetensors").items()}


def resealed(artifact: Artifact, folder: Path) -> Artifact:
    """A changed copy of an artifact, whole again."""
    files = describe_files(folder, list(artifact.manifest.files))
    return seal(folder, dataclasses.replace(artifact.manifest, files=files))


def greedy(artifact: Artifact) -> list[list[int]]:
    """64 tokens for each prompt, beyond the first stop token."""
    runtime = open_runtime(artifact.folder)
    answers = []
    for prompt in PROMPTS:
        request = GenerateRequest(messages=[Message("user", prompt)], max_new_tokens=64, ignore_stop_ids=True)
        answers.append([event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)])
    runtime.close()
    assert all(len(answer) == 64 for answer in answers)
    return answers


def plain_onnx(artifact: Artifact, folder: Path) -> Artifact:
    """The artifact's graph with all its quantised weights replaced."""
    scheme, weights = artifact.manifest.scheme, checkpoint_weights(TINY)
    assert scheme.bits and scheme.block_size and scheme.embedding_bits
    shutil.copytree(artifact.folder, folder)
    model = onnx.load(folder / "model.onnx")
    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    quantised = [name.removesuffix("_q") for name in initializers if name.endswith("_q")]
    assert len(quantised) == 4 * artifact.manifest.model.layers + 2
    for name in quantised:
        bits = scheme.embedding_bits if name == EMBEDDING else scheme.bits
        codes, scales = quantise(weights[name], bits, scheme.block_size, torch.float32)
        packed = codes if bits == 8 else codes[:, 0::2] | codes[:, 1::2] << 4
        for target, values in ((f"{name}_q", packed), (f"{name}_scales", scales)):
            old = initializers[target]
            old.CopyFrom(onnx.numpy_helper.from_array(values.reshape(tuple(old.dims)), target))
    for file in ("model.onnx", "model.onnx.data"):
        (folder / file).unlink()
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    return resealed(artifact, folder)


class RealWeights(PlaceholderTags):
    """Gives the layers what their slots are for, where the export gives them tags."""

    def __init__(self, checkpoint: Path, config: Config, block: int) -> None:
        super().__init__()
        self.weights, self.block = checkpoint_weights(checkpoint), block
        self.split = {
            f"{path}.weight": part_rows(layer, config.rope.rotary_dim)
            for path, layer in leaves(on_meta(config))
            if isinstance(layer, SplitLinear)
        }

    def floats(self, slot: SlotId, shape: tuple[int, ...], stored: torch.dtype = torch.float32) -> Tensor:
        values = self.rows(slot) if slot.kind == "weight" else self.quantised(slot, stored)[1]
        return torch.from_numpy(values).reshape(shape)

    def codes(self, slot: SlotId, shape: tuple[int, int]) -> Tensor:
        codes, _ = self.quantised(slot, torch.bfloat16)
        return torch.from_numpy(codes.astype(np.int8) - 8).reshape(shape)

    def packed(self, slot: SlotId, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        codes, _ = self.quantised(slot, torch.float32)
        return torch.from_numpy(codes[:, 0::2] << 4 | codes[:, 1::2])

    def quantised(self, slot: SlotId, scale_type: torch.dtype) -> tuple[npt.NDArray[np.uint8], Array]:
        return quantise(self.rows(slot), 4, self.block, scale_type)

    def rows(self, slot: SlotId) -> Array:
        """A tensor, or the rows of its part."""
        weight, start, parts = self.weights[slot.tensor], 0, []
        if not slot.part:
            return weight
        for other, count in self.split[slot.tensor]:
            if other == slot.part:
                parts.append(weight[start : start + count])
            start += count
        return np.concatenate(parts)


class OneOutput(nn.Module):
    """As a lowered piece gives it: in a tuple."""

    def __init__(self, piece: nn.Module) -> None:
        super().__init__()
        self.piece = piece

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        return (self.piece(*inputs),)


class OneRow(Runner):
    """With the last token's logits alone: XNNPACK's partitioner does not take a head whose number of rows is only known
    when the program runs. Ours is lowered by itself, for up to so many rows."""

    @staticmethod
    def rows(wanted: Tensor, count: Any) -> Any:
        return 1


def whole_program(checkpoint: Path, artifact: Artifact) -> bytes:
    """The model with its weights in it, lowered in one piece as ExecuTorch's documentation has it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    manifest = artifact.manifest
    request = ExportRequest(
        checkpoint=str(checkpoint),
        out=artifact.folder,
        target=manifest.target,
        scheme=manifest.scheme.name,
        context_tokens=CONTEXT,
    )
    job = resolve(request)
    config, scheme = job.checkpoint.config, job.scheme
    assert scheme.embedding_bits == 4 and scheme.block_size
    layers = [(f"model.layers.{n}", n) for n in range(config.num_hidden_layers)]
    real, make = RealWeights(checkpoint, config, scheme.block_size), Pieces(config, scheme)
    heads = config.num_key_value_heads
    pieces: list[nn.Module] = [First(make.before_attention(real, *layers[0]), heads)]
    for before, after in pairwise(layers):
        pieces.append(Between(make.after_attention(real, *before), make.before_attention(real, *after), heads))
    pieces.append(OneOutput(Last(make.after_attention(real, *layers[-1]), make.head(real))))
    runner = OneRow(config, make.embedding(real), pieces, job.context_tokens, job.ring_tokens).eval()
    example = (torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    shapes = ({1: torch.export.Dim("tokens", min=1, max=512)}, None)
    methods: dict[str, Any] = {"get_max_seq_len": 512, "get_max_context_len": job.context_tokens}
    edge = to_edge_transform_and_lower(
        torch.export.export(runner, example, dynamic_shapes=shapes, strict=False),
        partitioner=[XnnpackPartitioner()],
        constant_methods=methods,
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    settings = ExecutorchBackendConfig(
        do_quant_fusion_and_const_prop=False, sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass()
    )
    return bytes(edge.to_executorch(settings).buffer)


def exported(checkpoint: Path, target: str, scheme: str, out: Path) -> Artifact:
    """Data-free, so that a few lines of numpy can quantise it."""
    request = ExportRequest(checkpoint=str(checkpoint), out=out, target=target, scheme=scheme, context_tokens=CONTEXT)
    return export_model(request)


def test_onnx_gives_the_tokens_of_a_plain_export(tmp_path: Path) -> None:
    streamed = exported(TINY, "cpu", "int4-b64", tmp_path / "streamed")
    assert greedy(plain_onnx(streamed, tmp_path / "plain")) == greedy(streamed)


def test_executorch_gives_the_tokens_of_a_plain_export(first_layers: Callable[[int], Path], tmp_path: Path) -> None:
    """Of two layers: XNNPACK's partitioner takes 8 s of processor time for each."""
    checkpoint = first_layers(2)
    streamed = exported(checkpoint, "android", "int4-b32", tmp_path / "streamed")
    shutil.copytree(streamed.folder, tmp_path / "plain")
    with quiet(), torch.no_grad():
        (tmp_path / "plain" / "model.pte").write_bytes(whole_program(checkpoint, streamed))
    assert greedy(resealed(streamed, tmp_path / "plain")) == greedy(streamed)
