"""Time our engines and stock onnxruntime-genai on the same artifacts, in turn: load, TTFT, prefill, decode, memory.

    python ci/bench/generate.py ARTIFACT... [--prompt-tokens 128] [--generate-tokens 33] [--rounds 3]

Every figure is a median over rounds; each round is a fresh process, and the engines take turns within a round, so that
a drifting machine hurts all alike. Genai gets its thread count set: left alone it took one core of two. It runs the
ONNX artifacts, and any other folder with a genai_config.json, such as its own builder's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

# Run as a script, this folder comes first on the path, and export.py in it would be taken for the package `export`.
sys.path[0] = str(Path(__file__).parent.parent.parent)
from export.artifact import MANIFEST  # noqa: E402

GENAI = """
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import json, resource, sys, time, numpy, onnxruntime_genai as og
folder, prompt, generate, threads = sys.argv[1], *map(int, sys.argv[2:])
start = time.perf_counter()
config = og.Config(folder)
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
model = og.Model(config)
load_s = time.perf_counter() - start
params = og.GeneratorParams(model)
total = prompt + generate
params.set_search_options(max_length=total, min_length=total, do_sample=False)
for _ in range(2):  # the first is the warm-up
    generator = og.Generator(model, params)
    stamps = [time.perf_counter()]
    generator.append_tokens(numpy.arange(100, 100 + prompt, dtype=numpy.int32))
    for _ in range(generate):
        generator.generate_next_token()
        stamps.append(time.perf_counter())
    del generator
first, last = stamps[1], stamps[-1]
print(json.dumps({"load_s": load_s, "ttft_s": first - stamps[0], "prefill_tokens_per_s": prompt / (first - stamps[0]),
    "decode_tokens_per_s": (generate - 1) / (last - first),
    "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""
METRICS = ("load_s", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_memory_bytes")


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--prompt-tokens", default=128, show_default=True)
@click.option("--generate-tokens", default=33, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=lambda: len(os.sched_getaffinity(0)), show_default="all cores")
def main(folders: tuple[Path, ...], prompt_tokens: int, generate_tokens: int, rounds: int, threads: int) -> None:
    """Measure all FOLDERS and print a table."""
    series: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for folder in folders:
            if (folder / MANIFEST).is_file():
                figures = ours(folder, prompt_tokens, generate_tokens, threads)
                series.setdefault(f"{folder.name}, phi-edge", []).append(figures)
            if (folder / "genai_config.json").is_file():
                words = [sys.executable, "-c", GENAI, str(folder)]
                words += [str(number) for number in (prompt_tokens, generate_tokens, threads)]
                output = subprocess.run(words, check=True, capture_output=True, text=True).stdout
                series.setdefault(f"{folder.name}, onnxruntime-genai", []).append(json.loads(output.splitlines()[-1]))
    click.echo("| | load | first token | prefill | decode | peak memory |\n|---|---:|---:|---:|---:|---:|")
    for name, runs in series.items():
        load, ttft, prefill, decode, peak = (statistics.median(run[metric] for run in runs) for metric in METRICS)
        click.echo(
            f"| {name} | {load:.1f} s | {ttft:.2f} s | {prefill:.1f} tokens/s | {decode:.1f} tokens/s "
            f"| {peak / 1e9:.2f} GB |"
        )


def ours(folder: Path, prompt_tokens: int, generate_tokens: int, threads: int) -> dict[str, float]:
    """One repetition of `phi-edge bench`, by the definitions of docs/lab.md."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "measurement.json"
        words = [sys.executable, "-m", "phi_edge", "bench", str(folder), "--reps", "1", "--out", str(out)]
        words += ["--prompt-tokens", str(prompt_tokens), "--generate-tokens", str(generate_tokens)]
        subprocess.run([*words, "--threads", str(threads)], check=True, capture_output=True)
        report = subprocess.run(
            [sys.executable, "-m", "phi_edge", "report", str(out), "--json", "-"], check=True, capture_output=True
        )
    metrics = json.loads(report.stdout)["measurements"][0]["metrics"]
    load = metrics["load_s"] or metrics["cold_load_s"]
    return {"load_s": load["value"]} | {name: metrics[name]["value"] for name in METRICS[1:]}


if __name__ == "__main__":
    main()
