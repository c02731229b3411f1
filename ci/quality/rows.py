"""The rows of the quality table: how each is made, and the engine that runs it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from ci.quality.engine import Engine
from ci.quality.genai import Genai, build, build_command
from ci.quality.llama import PACKAGE, Llama, quantise
from ci.quality.ours import Ours, default_targets, export, export_command
from export.artifact import Format
from export.target import TARGETS

FLOAT = "float32"
Group = Literal["float", "ours", "peers"]


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where a row is made, and with what."""

    checkpoint: Path
    vocab_size: int
    folder: Path  # of this row alone; not there yet
    cache: Path  # for what several rows share
    threads: int


@dataclass(frozen=True, kw_only=True)
class Made:
    """A row's model, loaded."""

    engine: Engine
    bytes: int  # what a device must store for the weights


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row. `needs` are packages that its process must find beside the project's."""

    name: str
    label: str
    group: Group
    engine: str  # and its version
    command: str  # what makes the model out of CHECKPOINT
    make: Callable[[Workshop], Made]
    sources: Sequence[str]  # files and folders of this repository whose change makes a measurement out of date
    needs: Sequence[str] = ()


def rows() -> Mapping[str, Row]:
    """All rows that a table has by default, by name."""
    return {row.name: row for row in (_float(), *_peers(), *map(our_row, [*default_targets(), *BEST]))}


# Beside the targets' defaults: what is best at its size, and at the size of onnxruntime-genai's k_quant_mixed.
BEST = ("android/int4-b32-e8-gptq", "cpu/uint4-b64-e8-gptq/99.7MB", "cpu/uint4-b64-e8-gptq/113MB")


def named(name: str) -> Row:
    """The row of that name, or a row of ours that the table does not have by default."""
    return rows().get(name) or our_row(name)


# What runs the exports of each format: its name, and the package.
ENGINES: Mapping[Format, tuple[str, str]] = {
    "onnx": ("ONNX Runtime", "onnxruntime"),
    "executorch": ("ExecuTorch", "executorch"),
}


def our_row(name: str) -> Row:
    """An export of ours: TARGET, then its scheme and a limit on the size of all weights where they are not the
    defaults, such as cpu/uint4-b64-e8-gptq/113MB."""

    def make(workshop: Workshop) -> Made:
        size = export(workshop.checkpoint, workshop.folder, arguments)
        return Made(engine=Ours(workshop.folder, workshop.threads), bytes=size)

    target, *wanted = name.split("/")
    arguments = ["--target", target]
    engine, package = ENGINES[TARGETS[target].format]
    for each in wanted:
        arguments += ["--max-bytes" if each[0].isdigit() else "--scheme", each]
    return Row(
        name=name,
        label=f"Phi Edge, {target}, {', '.join(wanted) or 'default'}",
        group="ours",
        engine=f"{engine} {version(package)}",
        command=shlex.join(export_command("CHECKPOINT", "OUT", arguments)),
        make=make,
        sources=["ci/quality/ours.py", "export", "runtimes/engines", "runtimes/loop"],
    )


def _float() -> Row:
    def make(workshop: Workshop) -> Made:
        from ci.quality.torch_models import Transformers, float32

        size = sum(file.stat().st_size for file in workshop.checkpoint.glob("*.safetensors"))
        return Made(engine=Transformers(float32(workshop.checkpoint), workshop.threads), bytes=size)

    return Row(
        name=FLOAT,
        label="the checkpoint in float32",
        group="float",
        engine=f"transformers {version('transformers')}",
        command="the checkpoint's bfloat16 weights, computed in float32",
        make=make,
        sources=["ci/quality/torch_models.py"],
    )


def _peers() -> list[Row]:
    return [
        _genai("genai-int4", "onnxruntime-genai's builder, int4 as it comes", ()),
        _genai("genai-k-quant-mixed", "onnxruntime-genai's builder, k_quant_mixed", ("algo_config=k_quant_mixed",)),
        _llama("Q4_0"),
        _llama("Q4_K_M"),
        _torchao(),
    ]


def _genai(name: str, label: str, options: Sequence[str]) -> Row:
    def make(workshop: Workshop) -> Made:
        size = build(workshop.checkpoint, workshop.folder, options, workshop.cache)
        return Made(engine=Genai(workshop.folder, workshop.threads), bytes=size)

    return Row(
        name=name,
        label=label,
        group="peers",
        engine=f"onnxruntime-genai {version('onnxruntime-genai')}",
        command=shlex.join(["python", *build_command("CHECKPOINT", "OUT", options)]),
        make=make,
        sources=["ci/quality/genai.py"],
    )


def _llama(kind: Literal["Q4_0", "Q4_K_M"]) -> Row:
    def make(workshop: Workshop) -> Made:
        workshop.folder.mkdir()
        file = workshop.folder / f"{kind}.gguf"
        size = quantise(workshop.checkpoint, file, kind)
        return Made(engine=Llama(file, workshop.vocab_size, workshop.threads), bytes=size)

    return Row(
        name=f"llama.cpp-{kind}",
        label=f"llama.cpp, {kind}",
        group="peers",
        engine=f"llama.cpp in {PACKAGE.replace('==', ' ')}",
        command=f"ci/quality/llama.py: quantise(CHECKPOINT, OUT, {kind!r})",
        make=make,
        sources=["ci/quality/llama.py"],
        needs=[PACKAGE],
    )


def _torchao() -> Row:
    def make(workshop: Workshop) -> Made:
        from ci.quality.torch_models import Transformers, float32, quantise_8da4w

        model = float32(workshop.checkpoint)
        size = quantise_8da4w(model)
        return Made(engine=Transformers(model, workshop.threads), bytes=size)

    return Row(
        name="torchao-8da4w",
        label="torchao, 8da4w in groups of 32, embedding in 8 bits",
        group="peers",
        engine=f"torchao {version('torchao')} in torch {version('torch')}",
        command="ci/quality/torch_models.py: quantise_8da4w(float32(CHECKPOINT))",
        make=make,
        sources=["ci/quality/torch_models.py"],
    )
