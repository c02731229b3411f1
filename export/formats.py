"""The two formats behind one door: lay the weight file out, then, when its slots are full, write the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from export.artifact import Format, Model
from export.checkpoint import Checkpoint
from export.coverage import Coverage, onnx_coverage
from export.scheme import Scheme
from export.slots import Slot
from export.target import Target
from export.weight_file import WeightFile


@dataclass(frozen=True, kw_only=True)
class Job:
    """One export, resolved: nothing in it is a default any more."""

    checkpoint: Checkpoint
    target: Target
    format: Format
    scheme: Scheme
    context_tokens: int
    activations: str
    lengths_as_inputs: bool
    max_file_bytes: int | None
    model: Model


class Layout(Protocol):
    """A format's plan for one job."""

    slots: Mapping[str, Slot]  # of the files whose bytes are streamed
    spread: Mapping[str, Sequence[tuple[str, int]]]  # see WeightFile
    files: tuple[str, ...]  # every file this format writes, in the order of the manifest
    options: Mapping[str, Any]  # for the manifest: what the engine is given, as applied
    activations: str
    coverage: Coverage

    def fill(self, sink: WeightFile) -> None:
        """Fill the slots that do not come from the checkpoint."""

    def finish(self, folder: Path, digests: Mapping[str, str]) -> None:
        """Write what is left once the weight file is full."""


class OnnxLayout:
    """model.onnx, model.onnx.data (and more, if a file may not grow so large) and genai_config.json."""

    def __init__(self, job: Job) -> None:
        from export import onnx_graph
        from export.onnx_operators import CPU
        from export.onnx_slots import part_slots, slots_for

        config = job.checkpoint.config
        self.job = job
        form = CPU
        if job.target.provider == "dml":
            from export.onnx_directml import directml_form

            form = directml_form(job.activations, lengths_as_inputs=job.lengths_as_inputs)
        whole = slots_for(config, job.scheme, job.context_tokens, form, job.max_file_bytes)
        self.slots: Mapping[str, Slot]
        self.spread: Mapping[str, Sequence[tuple[str, int]]]
        self.slots, self.spread = part_slots(config, whole)
        # onnxruntime-genai gives a mask, not lengths.
        genai = () if job.lengths_as_inputs else ("genai_config.json",)
        self.files: tuple[str, ...] = ("model.onnx", *weight_files(self.slots), *genai)
        self.graph = onnx_graph.build(
            config,
            job.scheme,
            whole,
            context_tokens=job.context_tokens,
            accuracy_level=job.target.accuracy_level,
            form=form,
        )
        self.coverage = onnx_coverage(
            ((str(node.name), node.op_type) for node in self.graph.graph), job.target.provider
        )
        quantised = job.scheme.bits is not None
        int8 = ", int8 inside MatMulNBits" if job.target.accuracy_level == 4 and quantised else ""
        self.activations = job.activations + int8
        self.options: Mapping[str, Any] = {
            "opset": self.graph.opset_imports[""],
            "accuracy_level": job.target.accuracy_level if quantised else None,
            "kv_cache": f"{job.activations}, one buffer for past and present",
            "logits": "last token only",
            "max_file_bytes": job.max_file_bytes,
            "lengths": "inputs" if job.lengths_as_inputs else "attention mask",
            "provider": job.target.provider or "cpu",
        }

    def fill(self, sink: WeightFile) -> None:
        tables = self.job.checkpoint.config.rope.stacked_tables(self.job.context_tokens)
        for name, table in zip(("cos_cache", "sin_cache"), tables, strict=True):
            table = np.ascontiguousarray(table.astype(self.slots[name].dtype))
            sink.append(name, table.view(np.uint8).data.cast("B"))
        for name, middle in (("zero_points_4", b"\x88"), ("zero_points_8", b"\x80")):
            if name in self.slots:
                sink.append(name, memoryview(middle * self.slots[name].length))

    def finish(self, folder: Path, digests: Mapping[str, str]) -> None:
        import onnx_ir

        from export.genai_config import genai_config

        onnx_ir.save(self.graph, folder / "model.onnx")
        if "genai_config.json" not in self.files:
            return
        job = self.job
        content = genai_config(
            job.model,
            job.checkpoint.tokens,
            model_type=job.checkpoint.config_content["model_type"],
            context_tokens=job.context_tokens,
            provider=job.target.provider,
        )
        (folder / "genai_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class ExecuTorchLayout:
    """model.pte, with its weights inside."""

    files: tuple[str, ...] = ("model.pte",)

    def __init__(self, job: Job) -> None:
        from export import executorch_program
        from export.executorch_lowering import PREFILL_TOKENS

        tokens = job.checkpoint.tokens
        self.program = executorch_program.build(
            job.checkpoint.config,
            job.scheme,
            context_tokens=job.context_tokens,
            bos=tokens.bos,
            stop=list(tokens.stop),
        )
        self.slots: Mapping[str, Slot] = self.program.slots
        self.coverage = self.program.coverage
        self.spread: Mapping[str, Sequence[tuple[str, int]]] = self.program.spread
        self.activations = "int8 by row, dynamic, in every linear layer" if job.scheme.bits else "float32"
        self.options: Mapping[str, Any] = {
            "backend": "xnnpack",
            "delegates": job.model.layers + 1,
            "kv_cache": "float32, state of the program",
            "logits": "last token only",
            "prefill_tokens": min(PREFILL_TOKENS, job.context_tokens),
        }

    def fill(self, sink: WeightFile) -> None:
        """Nothing: the rotary tables are constants of the program."""

    def finish(self, folder: Path, digests: Mapping[str, str]) -> None:
        self.program.finish(folder / "model.pte", digests)


LAYOUTS: Mapping[Format, Callable[[Job], Layout]] = {"onnx": OnnxLayout, "executorch": ExecuTorchLayout}


def weight_files(slots: Mapping[str, Slot]) -> list[str]:
    """The files that slots lie in, in order."""
    return list(dict.fromkeys(slot.file for slot in slots.values()))


def workers() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
