"""onnxruntime-genai: its own builder's int4 graphs, run by its own generator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ci.quality.engine import Logits
from ci.quality.packages import beside, with_packages
from runtimes.system.telemetry import switch_telemetry_off

BUILD_S = 1800.0
ONNXSCRIPT = "onnxscript==0.7.2"  # the builder needs it, and nothing else here does


def build_command(checkpoint: str, out: str, options: Sequence[str]) -> list[str]:
    """The builder's command, from `-m` on."""
    command = ["-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", out, "-p", "int4", "-e", "cpu"]
    return [*command, "-c", f"{out}-cache", *(["--extra_options", *options] if options else [])]


def build(checkpoint: Path, folder: Path, options: Sequence[str], cache: Path) -> int:
    """Run the builder; the bytes of the graph and its weights. Raises subprocess.CalledProcessError."""
    subprocess.run(
        [sys.executable, *build_command(str(checkpoint), str(folder), options)],
        check=True,
        timeout=BUILD_S,
        env=with_packages(beside(cache, ONNXSCRIPT)),
        stdout=subprocess.DEVNULL,
    )
    return sum(file.stat().st_size for file in folder.glob("model.onnx*"))


class Genai:
    """A builder's folder in onnxruntime-genai. Left alone it may use one thread, so threads are set in its config."""

    def __init__(self, folder: Path, threads: int) -> None:
        switch_telemetry_off()
        import onnxruntime_genai

        file = folder / "genai_config.json"
        config = json.loads(file.read_text())
        config["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = threads
        file.write_text(json.dumps(config))
        self._genai = onnxruntime_genai
        self._model = onnxruntime_genai.Model(str(folder))

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """See Engine.logits."""
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(ids) + 1, do_sample=False)
        generator = self._genai.Generator(self._model, parameters)
        generator.append_tokens(np.array(ids[:first], np.int32))
        yield generator.get_logits()[0, -1]
        for token in ids[first:]:
            generator.append_tokens(np.array([token], np.int32))
            yield generator.get_logits()[0, -1]
