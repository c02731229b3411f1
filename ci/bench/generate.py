"""Time our engines, stock onnxruntime-genai and llama.cpp side by side: prefill, decode, load and memory by prompt.

    python ci/bench/generate.py ARTIFACT... [--gguf model-q4_0.gguf --llama-python VENV/bin/python] [--rounds 3]

Every run is a fresh process, and the contenders take turns within a round, so that a drifting machine hurts all alike.
How fast the machine reads memory is measured before each round: it bounds the tokens a second. A folder runs in every
engine that can: our artifacts in ours, and each folder with a genai_config.json (genai's own builder's too) in stock
onnxruntime-genai, which gets its thread count set: left alone it took one core of two. A prompt that is too long for a
contender's context is left out.

llama.cpp must be compiled for the machine that it runs on, in an environment of its own; that takes ten minutes on two
cores, and the wheels of other packages are for AVX2 alone, which is no fair comparison:

    python -m venv VENV
    CMAKE_ARGS=-DGGML_NATIVE=ON VENV/bin/pip install --no-binary llama-cpp-python llama-cpp-python
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click
import numpy as np

# Run as a script, this folder comes first on the path, and export.py in it would be taken for the package `export`.
sys.path[0] = str(Path(__file__).parent.parent.parent)
from ci.speed.contenders import Contender, Engine, bytes_per_token, contenders, run  # noqa: E402
from ci.speed.page import plot, table  # noqa: E402
from ci.speed.result import Comparison, Run  # noqa: E402

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
TOOLS = ("phi-edge", "onnxruntime", "onnxruntime-genai", "executorch")
READ_BYTES, READS = 1 << 28, 8  # larger than every cache; the fastest reading counts


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--gguf", type=FILE, help="The same model for llama.cpp.")
@click.option("--llama-python", default=sys.executable, help="A Python that has llama-cpp-python.")
@click.option("--engine", "engines", multiple=True, type=click.Choice(get_args(Engine)), default=get_args(Engine),
              help="Only this one; give it again for each further one.")  # fmt: skip
@click.option("--prompt-tokens", "prompts", multiple=True, type=int, default=(128, 1024, 3584), show_default=True)
@click.option("--generate-tokens", default=33, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", type=int, default=lambda: len(os.sched_getaffinity(0)), show_default="all cores")
@click.option("--out", type=click.Path(path_type=Path), help="Write all runs as JSON, and a plot beside it.")
def main(
    folders: tuple[Path, ...],
    gguf: Path | None,
    llama_python: str,
    engines: tuple[str, ...],
    prompts: tuple[int, ...],
    generate_tokens: int,
    rounds: int,
    threads: int,
    out: Path | None,
) -> None:
    """Measure all FOLDERS, print a table, and with --out write the raw runs and a plot.

    A contender that fails is left out from there on, and the exit code is 1.
    """
    chosen = [each for each in contenders(folders, gguf, llama_python) if each.engine in engines]
    if not chosen:
        raise click.ClickException(f"--engine {' '.join(engines)}: none of what was given runs there")
    runs: list[Run] = []
    failed: dict[str, str] = {}
    bandwidth: list[float] = []
    for _ in range(rounds):
        bandwidth.append(read_speed(threads))
        for prompt in prompts:
            for contender in chosen:
                if contender.name in failed or not contender.fits(prompt + generate_tokens):
                    continue
                try:
                    runs.append(run(contender, prompt, generate_tokens, threads))
                except click.ClickException as error:
                    failed[contender.name] = error.message
                    error.show()
                else:
                    click.echo(json.dumps(asdict(runs[-1])), err=True)
    if not runs and failed:
        raise SystemExit(1)
    if not runs:
        raise click.ClickException("no prompt fits into any contender's context; give shorter --prompt-tokens")
    comparison = Comparison(
        command=" ".join(["python", "ci/bench/generate.py", *sys.argv[1:]]),
        machine=f"{processor()}, {platform.system()}",
        tools={name: importlib.metadata.version(name) for name in TOOLS},
        threads=threads,
        generate_tokens=generate_tokens,
        bandwidth_bytes_per_s=bandwidth,
        bytes_per_token={each.name: needed(each, prompts) for each in chosen if each.artifact},
        runs=runs,
    )
    click.echo(table(comparison))
    if out is not None:
        out.write_text(json.dumps(asdict(comparison), indent=1) + "\n", encoding="utf-8")
        plot(comparison, out.with_suffix(".svg"))
    for name, reason in failed.items():
        click.echo(f"{name} was left out: {reason}")
    raise SystemExit(1 if failed else 0)


def needed(contender: Contender, prompts: tuple[int, ...]) -> dict[int, int]:
    """Of each prompt, what must be read for a token after it."""
    assert contender.artifact is not None
    return {prompt: bytes_per_token(contender.artifact, prompt) for prompt in prompts}


def read_speed(threads: int) -> float:
    """Bytes a second, of memory that `threads` threads read at the same time."""
    parts = [np.ones(READ_BYTES // 8 // threads) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(READS):
            start = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - start))
    return best


def processor() -> str:
    """The processor's name, where Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
