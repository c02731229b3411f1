"""The streamed export against a plain one of the same weights, which quantises whole matrices in numpy."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from safetensors.torch import load_file

from export.artifact import Artifact, describe_files, open_artifact, seal
from runtimes.api import GenerateRequest, Message, TokenEvent
from runtimes.registry import open_runtime

TINY = Path(__file__).parent.parent / "export" / "tiny"
PROMPTS = ["Turn off the lamp in the kitchen.", "What is 17 plus 26?", "How many grams are 7 kilograms?"]
Array = npt.NDArray[np.float32]


def quantise(weight: Array, bits: int, block: int) -> tuple[npt.NDArray[np.uint8], Array]:
    """Codes as bytes, the even column's in the low half, and scales [rows, blocks]: the best of some scales a block."""
    zero = 2 ** (bits - 1)
    blocks = weight.reshape(len(weight), -1, block)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    largest[largest == 0] = 1
    tried = [largest / np.float32(divisor) for divisor in ((7, 7.5, 8) if bits == 4 else (127,))]
    levels = [np.clip(np.rint(blocks * (1 / scale)), -zero, zero - 1) for scale in tried]
    errors = [np.square(level * scale - blocks).sum(-1) for level, scale in zip(levels, tried, strict=True)]
    best = np.argmin(errors, axis=0)[None, ..., None]
    codes = (np.take_along_axis(np.stack(levels), best, 0)[0] + zero).astype(np.uint8).reshape(weight.shape)
    packed = codes if bits == 8 else codes[:, 0::2] | codes[:, 1::2] << 4
    return packed, np.take_along_axis(np.stack(tried), best, 0)[0, ..., 0]


def whole_onnx(artifact: Artifact, folder: Path) -> Artifact:
    """The artifact again, its quantised weights made from whole matrices and saved by the onnx library."""
    scheme = artifact.manifest.scheme
    assert scheme.bits and scheme.block_size and scheme.embedding_bits
    shutil.copytree(artifact.folder, folder)
    tensors = {name: tensor.float().numpy() for name, tensor in load_file(TINY / "model.safetensors").items()}
    model = onnx.load(folder / "model.onnx")
    made = 0
    for initializer in model.graph.initializer:
        name = initializer.name.removesuffix("_q")
        if name == initializer.name:
            continue
        bits = scheme.embedding_bits if "embed_tokens" in name else scheme.bits
        codes, scales = quantise(tensors[name], bits, scheme.block_size)
        for target, values in ((initializer.name, codes), (f"{name}_scales", scales)):
            (old,) = (item for item in model.graph.initializer if item.name == target)
            old.CopyFrom(onnx.numpy_helper.from_array(values.reshape(tuple(old.dims)), target))
            made += 1
    assert made > 4 * artifact.manifest.model.layers
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).unlink()
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")
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
    return answers


def test_onnx_gives_the_tokens_of_a_plain_export(tiny_onnx: Path, tmp_path: Path) -> None:
    streamed = open_artifact(tiny_onnx)
    tokens = greedy(streamed)
    assert all(len(answer) == 64 for answer in tokens)
    assert greedy(whole_onnx(streamed, tmp_path / "whole")) == tokens
