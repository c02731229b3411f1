"""An ONNX artifact's files: the graph, its external data, and what onnxruntime-genai reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from export.adapters.side import write_side
from export.coverage import onnx_coverage
from export.job import Job
from export.models.layers import split_rows
from export.models.shape import on_meta
from export.to_onnx import graph
from export.to_onnx.cuda import cuda_options, cuda_style
from export.to_onnx.directml import directml_style
from export.to_onnx.genai_config import genai_config
from export.to_onnx.int8_cache import INT8_CACHE
from export.to_onnx.operators import CPU
from export.to_onnx.slots import COS, SIN, shared_zero_points_id, slots_for, split_slots
from export.to_onnx.webgpu import webgpu_style
from export.weights.slots import Interleaved, SlotId, Slots, weight_files
from export.weights.weight_file import WeightFile


class OnnxLayout:
    """model.onnx, model.onnx.data (and more, if a file may not grow so large) and genai_config.json."""

    notes: Sequence[str] = ()

    def __init__(self, job: Job) -> None:
        config = job.checkpoint.config
        self.job = job
        style = replace(INT8_CACHE if job.int8_cache else CPU, window_cache=job.window_cache_tokens is not None)
        if job.target.provider == "dml":
            style = directml_style(job.activations, lengths_as_inputs=job.request.lengths_as_inputs)
        elif job.target.provider == "webgpu":
            style = webgpu_style(job.activations)
        elif job.target.provider == "cuda":
            style = cuda_style(job.activations)
        whole = slots_for(config, job.scheme, job.context_tokens, style, job.max_file_bytes)
        self.slots: Slots
        self.interleaved: Interleaved
        self.slots, self.interleaved = split_slots(whole, split_rows(on_meta(config)))
        sides = tuple(adapter.file for adapter in job.side_adapters)
        # onnxruntime-genai gives a mask, not lengths.
        genai = () if job.request.lengths_as_inputs else ("genai_config.json",)
        self.files: tuple[str, ...] = ("model.onnx", *weight_files(self.slots), *sides, *genai)
        self.graph = graph.build(
            config,
            job.scheme,
            whole,
            context_tokens=job.context_tokens,
            accuracy_level=job.target.accuracy_level,
            style=style,
            side_matrices={name for adapter in job.side_adapters for name in adapter.changes},
        )
        nodes = [(str(node.name), node.op_type) for node in self.graph.graph.all_nodes()]
        self.coverage = onnx_coverage(nodes, job.target.provider)
        self.provider_options = (
            cuda_options({operator for _, operator in nodes}) if job.target.provider == "cuda" else {}
        )
        quantised = job.scheme.bits is not None
        int8 = ", int8 inside MatMulNBits" if job.target.accuracy_level == 4 and quantised else ""
        self.activations = job.activations + int8
        cache = "int8, a scale for each channel" if job.int8_cache else job.activations
        if job.window_cache_tokens is not None:
            cache += f", the last {job.window_cache_tokens} tokens"
        self.options: Mapping[str, Any] = {
            "opset": self.graph.opset_imports[""],
            "accuracy_level": job.target.accuracy_level if quantised else None,
            "kv_cache": f"{cache}, one buffer for past and present",
            "logits": "last token; several in token_logits, if asked for" if style.token_logits else "last token only",
            "max_file_bytes": job.max_file_bytes,
            "lengths": "inputs" if job.request.lengths_as_inputs else "attention mask",
            "provider": job.target.provider or "cpu",
            **({"provider_options": self.provider_options} if self.provider_options else {}),
        }

    def fill(self, sink: WeightFile) -> None:
        tables = self.job.checkpoint.config.rope.stacked_tables(self.job.context_tokens)
        for id, table in zip((COS, SIN), tables, strict=True):
            table = np.ascontiguousarray(table.astype(self.slots[id].dtype))
            sink.append(id, table.view(np.uint8).data.cast("B"))
        for bits, middle in ((4, b"\x88"), (8, b"\x80")):
            if (id := shared_zero_points_id(bits)) in self.slots:
                sink.append(id, memoryview(middle * self.slots[id].length))

    def finish(self, folder: Path, digests: Mapping[SlotId, str]) -> None:
        onnx_ir.save(self.graph, folder / "model.onnx")
        for adapter in self.job.side_adapters:
            write_side(adapter, self.job.checkpoint.config.tensor_shapes(), folder)
        if "genai_config.json" not in self.files:
            return
        job = self.job
        content = genai_config(
            job.model,
            job.checkpoint.tokens,
            model_type=job.checkpoint.config_content["model_type"],
            context_tokens=job.context_tokens,
            window_tokens=job.checkpoint.config.sliding_window,
            kept_tokens=job.window_cache_tokens,
            provider=job.target.provider,
            provider_options=self.provider_options,
            quiet=not job.target.provider or bool(job.side_adapters),
        )
        (folder / "genai_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
