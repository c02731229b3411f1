"""Who is timed: our engines on an artifact, stock onnxruntime-genai on a folder, llama.cpp on a GGUF file.

Each run is a process of its own, which loads the model, generates twice and times the second time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from ci.speed.result import Run
from export.artifact import MANIFEST, Artifact, open_artifact
from export.models.shape import EMBEDDING
from export.scheme import HEAD
from export.weights.layout_file import read_layout

ROOT = Path(__file__).resolve().parents[2]
RUN_S = 3600.0

GENAI = """
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import json, sys, time, numpy, onnxruntime_genai as og
folder, prompt, generate, threads = sys.argv[1], *map(int, sys.argv[2:])
start = time.perf_counter()
config = og.Config(folder)
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
model = og.Model(config)
load_s = time.perf_counter() - start
params = og.GeneratorParams(model)
total = prompt + generate
params.set_search_options(max_length=total, min_length=total, do_sample=False)
for _ in range(2):
    generator = og.Generator(model, params)
    stamps = [time.perf_counter()]
    generator.append_tokens(numpy.arange(100, 100 + prompt, dtype=numpy.int32) % 700)
    for _ in range(generate):
        generator.generate_next_token()
        stamps.append(time.perf_counter())
    del generator
"""
LLAMA = """
import json, sys, time, llama_cpp as ll
file, prompt, generate, threads = sys.argv[1], *map(int, sys.argv[2:])
ll.llama_backend_init()
start = time.perf_counter()
model = ll.llama_model_load_from_file(file.encode(), ll.llama_model_default_params())
load_s = time.perf_counter() - start
settings = ll.llama_context_default_params()
settings.n_ctx = -(-(prompt + generate) // 256) * 256
settings.n_threads = settings.n_threads_batch = threads
def decode(context, tokens):
    for first in range(0, len(tokens), settings.n_batch):
        some = tokens[first : first + settings.n_batch]
        array = (ll.llama_token * len(some))(*some)
        if ll.llama_decode(context, ll.llama_batch_get_one(array, len(some))):
            raise SystemExit("llama_decode failed")
    ll.llama_synchronize(context)
for _ in range(2):
    context = ll.llama_init_from_model(model, settings)
    stamps = [time.perf_counter()]
    decode(context, [token % 700 for token in range(100, 100 + prompt)])
    stamps.append(time.perf_counter())
    for _ in range(generate - 1):
        decode(context, [5])
        stamps.append(time.perf_counter())
    ll.llama_free(context)
"""
# The figures of the second time. The first token comes with the end of the prompt. The peak is VmHWM, because a child's
# ru_maxrss begins with its parent's.
REPORT = """
with open("/proc/self/status") as status:
    (peak,) = (int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
first, last = stamps[1], stamps[-1]
print(json.dumps({"load_s": load_s, "ttft_s": first - stamps[0], "prefill_tokens_per_s": prompt / (first - stamps[0]),
    "decode_tokens_per_s": (generate - 1) / (last - first),
    "peak_memory_bytes": peak}))
"""
METRICS = ("load_s", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_memory_bytes")
Engine = Literal["phi-edge", "onnxruntime-genai", "llama.cpp"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model in an engine. `context_tokens`: how many tokens prompt and answer may have together; None for llama.cpp,
    which makes its context as large as they need. `python`: the interpreter that has the engine."""

    engine: Engine
    path: Path
    context_tokens: int | None
    artifact: Artifact | None  # where the folder is one of ours
    python: str = sys.executable

    @property
    def name(self) -> str:
        return f"{self.path.name}, {self.engine}"

    def fits(self, tokens: int) -> bool:
        """Whether so many tokens are within its context."""
        return self.context_tokens is None or tokens <= self.context_tokens


def contenders(folders: Sequence[Path], gguf: Path | None, llama_python: str) -> Iterator[Contender]:
    """Each folder in every engine that runs it, and the GGUF file in llama.cpp. Raises click.ClickException for a
    folder that none runs."""
    for folder in folders:
        artifact = open_artifact(folder) if (folder / MANIFEST).is_file() else None
        genai = folder / "genai_config.json"
        if artifact is None and not genai.is_file():
            raise click.ClickException(f"{folder}: has neither {MANIFEST} nor {genai.name}; give an exported folder")
        if artifact is not None:
            context = artifact.manifest.context_tokens
            yield Contender(engine="phi-edge", path=folder, context_tokens=context, artifact=artifact)
        if genai.is_file():
            context = json.loads(genai.read_text(encoding="utf-8"))["model"]["context_length"]
            yield Contender(engine="onnxruntime-genai", path=folder, context_tokens=context, artifact=artifact)
    if gguf is not None:
        yield Contender(engine="llama.cpp", path=gguf, context_tokens=None, artifact=None, python=llama_python)


def run(contender: Contender, prompt_tokens: int, generate_tokens: int, threads: int) -> Run:
    """Time one contender once. Raises click.ClickException where its process fails."""
    numbers = [str(number) for number in (prompt_tokens, generate_tokens, threads)]
    if contender.engine == "phi-edge":
        figures = ours(contender.path, *numbers)
    else:
        code = (GENAI if contender.engine == "onnxruntime-genai" else LLAMA) + REPORT
        output = finished([contender.python, "-c", code, str(contender.path), *numbers])
        figures = json.loads(output.splitlines()[-1])
    return Run(contender=contender.name, prompt_tokens=prompt_tokens, **{name: figures[name] for name in METRICS})


def ours(folder: Path, prompt_tokens: str, generate_tokens: str, threads: str) -> dict[str, float]:
    """One repetition of `phi-edge bench`, by the definitions of docs/lab.md."""
    phi_edge = [sys.executable, "-m", "phi_edge"]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "measurement.json"
        words = [*phi_edge, "bench", str(folder), "--reps", "1", "--out", str(out), "--threads", threads]
        finished([*words, "--prompt-tokens", prompt_tokens, "--generate-tokens", generate_tokens])
        report = json.loads(finished([*phi_edge, "report", str(out), "--json", "-"]))
        (repetition,) = json.loads(out.read_text(encoding="utf-8"))["repetitions"]
    metrics = report["measurements"][0]["metrics"]
    # Not the metric: it has no value where the page cache kept a part of the files, as when another program reads them.
    return {"load_s": repetition["load_s"]} | {name: metrics[name]["value"] for name in METRICS[1:]}


def finished(command: Sequence[str]) -> str:
    """What a program printed. Raises click.ClickException with its last line where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, cwd=ROOT, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise click.ClickException(f"{' '.join(command[:4])!r:.200} ended with {done.returncode}: {last}")
    return done.stdout


def bytes_per_token(artifact: Artifact, tokens: int) -> int:
    """What must be read from memory for one more token after so many: all weights but a table of which one row is read,
    and the keys and values inside the window."""
    manifest = artifact.manifest
    sizes = {tensor.name: sum(slot.length for slot in tensor.slots.values()) for tensor in read_layout(artifact)}
    table = sizes[EMBEDDING] if HEAD in sizes else 0  # a tied head reads the embedding
    seen = min(tokens, manifest.window_tokens or tokens)
    return manifest.memory.weights_bytes - table + seen * manifest.memory.kv_bytes_per_token
