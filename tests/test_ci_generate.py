"""ci/bench/generate.py on the tiny model: our engines, stock onnxruntime-genai, and a stand-in for llama.cpp."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ci.speed.contenders import bytes_per_token
from ci.speed.page import table
from ci.speed.result import Comparison, Run
from export.artifact import open_artifact
from runtimes.agent.facts import weights

ROOT = Path(__file__).parents[1]
# The functions of llama-cpp-python that are called; there is no model behind them.
LLAMA_CPP = """
import ctypes, types
llama_token = ctypes.c_int32
def llama_context_default_params():
    return types.SimpleNamespace(n_batch=16)
def llama_decode(context, batch):
    assert batch[1] == len(batch[0]) <= 16 and context in (("model", 256), ("model", 512))
    return 0
def llama_init_from_model(model, settings):
    assert settings.n_threads == settings.n_threads_batch == 1
    return model, settings.n_ctx
def llama_batch_get_one(array, count):
    return array, count
def llama_model_load_from_file(file, settings):
    assert file.endswith(b"model.gguf")
    return "model"
def nothing(*arguments):
    pass
llama_backend_init = llama_synchronize = llama_free = llama_model_default_params = nothing
"""


def generate(*words: str, modules: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "ci/bench/generate.py", *words, "--threads", "1"]
    environment = os.environ | ({"PYTHONPATH": str(modules)} if modules else {})
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=500, check=False, env=environment)


@contextlib.contextmanager
def half_in_use(artifact: Path) -> Iterator[None]:
    """Another program has mapped half of the weights, which the page cache then keeps: a start is neither cold nor
    warm."""
    with contextlib.ExitStack() as stack:
        for path in weights(list(artifact.iterdir())):
            file = stack.enter_context(path.open("rb"))
            pages = stack.enter_context(mmap.mmap(file.fileno(), path.stat().st_size // 2, access=mmap.ACCESS_READ))
            assert sum(pages[:: mmap.PAGESIZE]) >= 0  # reads them
        yield


def test_all_engines_take_turns(tiny_onnx_short: Path, tiny_executorch: Path, tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text(LLAMA_CPP)
    gguf, out = tmp_path / "model.gguf", tmp_path / "speed.json"
    gguf.write_bytes(b"")
    words = [str(tiny_onnx_short), str(tiny_executorch), "--gguf", str(gguf), "--rounds", "1", "--out", str(out)]
    words += ["--prompt-tokens", "20", "--prompt-tokens", "300", "--generate-tokens", "3"]
    with half_in_use(tiny_onnx_short):
        done = generate(*words, modules=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    onnx, executorch = f"{tiny_onnx_short.name}, phi-edge", f"{tiny_executorch.name}, phi-edge"
    genai, llama = f"{tiny_onnx_short.name}, onnxruntime-genai", "model.gguf, llama.cpp"
    # 300 tokens are beyond the short artifact's context.
    order = [(onnx, 20), (genai, 20), (executorch, 20), (llama, 20), (executorch, 300), (llama, 300)]
    assert [(run["contender"], run["prompt_tokens"]) for run in content["runs"]] == order
    assert all(run["decode_tokens_per_s"] > 0 and 1e6 < run["peak_memory_bytes"] < 400e6 for run in content["runs"])
    assert len(content["bandwidth_bytes_per_s"]) == 1 and set(content["bytes_per_token"]) == {onnx, genai, executorch}
    assert len([line for line in done.stdout.splitlines() if line.startswith(("| 20 |", "| 300 |"))]) == len(order)
    assert out.with_suffix(".svg").read_text().count("<svg") == 1


def test_what_cannot_be_timed_is_said_in_one_line(tiny_onnx_short: Path, tmp_path: Path) -> None:
    for words, reason in (
        ([str(tmp_path)], "has neither manifest.json nor genai_config.json"),
        ([str(tiny_onnx_short), "--prompt-tokens", "5000"], "give shorter --prompt-tokens"),
        ([str(tiny_onnx_short), "--gguf", str(tmp_path / "none.gguf")], "none.gguf"),
    ):
        done = generate(*words, "--rounds", "1")
        assert done.returncode != 0 and reason in done.stderr and "Traceback" not in done.stderr


def test_a_contender_that_fails_is_left_out_and_the_others_are_timed(tiny_onnx_short: Path, tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit('no such instruction')")
    gguf, out = tmp_path / "model.gguf", tmp_path / "speed.json"
    gguf.write_bytes(b"")
    words = [str(tiny_onnx_short), "--engine", "llama.cpp", "--engine", "phi-edge", "--gguf", str(gguf)]
    words += ["--rounds", "2", "--prompt-tokens", "20", "--generate-tokens", "3", "--out", str(out)]
    done = generate(*words, modules=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1].startswith("model.gguf, llama.cpp was left out: ")
    assert "no such instruction" in done.stdout
    names = [run["contender"] for run in json.loads(out.read_text())["runs"]]
    assert names == 2 * [f"{tiny_onnx_short.name}, phi-edge"]


def test_a_token_needs_the_weights_and_the_keys_and_values_in_the_window(tiny_onnx: Path) -> None:
    artifact = open_artifact(tiny_onnx)
    memory, window = artifact.manifest.memory, artifact.manifest.window_tokens
    assert window is not None
    few, many, beyond = (bytes_per_token(artifact, tokens) for tokens in (0, 100, 2 * window))
    assert few <= memory.weights_bytes
    assert many - few == 100 * memory.kv_bytes_per_token and beyond - few == window * memory.kv_bytes_per_token


def test_the_table_has_medians_ranges_and_ratios() -> None:
    def run(contender: str, decode: float) -> Run:
        return Run(
            contender=contender, prompt_tokens=128, load_s=1.0, ttft_s=2.0, prefill_tokens_per_s=10 * decode,
            decode_tokens_per_s=decode, peak_memory_bytes=3e9,
        )  # fmt: skip

    runs = [run(name, decode) for decode in (8.0, 9.0, 12.0) for name in ("a, phi-edge", "b, llama.cpp")]
    runs.append(run("a, phi-edge", 11.0))
    comparison = Comparison(
        command="", machine="a machine", tools={}, threads=2, generate_tokens=33, bandwidth_bytes_per_s=[3e9, 4e9, 5e9],
        bytes_per_token={"a, phi-edge": {128: 200_000_000}}, runs=runs,
    )  # fmt: skip
    *_, ours, theirs = table(comparison).splitlines()
    assert "| 100.0 (80.0-120.0) | 1.11 | 10.0 (8.0-12.0) | 1.11 | 50% | 2.00 s | 1.0 s | 3.00 GB |" in ours
    assert "| 9.0 (8.0-12.0) | 1.00 |  | 2.00 s |" in theirs
