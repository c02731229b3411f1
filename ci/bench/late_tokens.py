"""Time a token near the beginning of the context and one far in, in turns in one process.

    python ci/bench/late_tokens.py ARTIFACT... [--early 128] [--late 3584] [--pairs 60]

What a long context costs a token, without the drift of a machine between two runs: the two take turns, so that the
median of their ratios is that of the same seconds. Nothing is prefilled: ONNX Runtime's KV cache is filled with numbers
first, so that its pages are there, and ExecuTorch's has zeroes.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path

import click
import numpy as np

# Run as a script, this folder comes first on the path, and export.py in it would be taken for the package `export`.
sys.path[0] = str(Path(__file__).parent.parent.parent)
from devices.measure.intervals import bootstrap, interval  # noqa: E402
from export.artifact import open_artifact  # noqa: E402
from runtimes.engines.engine import Engine, OpenCache  # noqa: E402
from runtimes.registry import ENGINES  # noqa: E402


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--early", default=128, show_default=True, help="Tokens before the early one.")
@click.option("--late", default=3584, show_default=True, help="Tokens before the late one.")
@click.option("--pairs", default=60, show_default=True)
@click.option("--threads", type=int, help="[default: all cores]")
def main(folders: tuple[Path, ...], early: int, late: int, pairs: int, threads: int | None) -> None:
    """Print a row for each of the artifacts FOLDERS."""
    print(f"| {pairs} pairs | after {early} | after {late} | of the speed after {early} (95 %) |\n|---|---:|---:|---:|")
    for folder in folders:
        artifact = open_artifact(folder)
        if late >= artifact.manifest.context_tokens:
            raise click.ClickException(f"{folder}: has a context of {artifact.manifest.context_tokens} tokens")
        engine = ENGINES[artifact.manifest.format](artifact, threads)
        try:
            times = measure(engine, early, late, pairs)
        finally:
            engine.close()
        before, after = (1000 * statistics.median(each) for each in zip(*times, strict=True))
        ratios = [one / other for one, other in times]
        low, high = interval(bootstrap([np.array([ratio]) for ratio in ratios], 0.5))
        print(
            f"| {folder.name} | {before:.0f} ms | {after:.0f} ms | {statistics.median(ratios):.2f} "
            f"({low:.2f} to {high:.2f}) |",
            flush=True,
        )


def measure(engine: Engine, early: int, late: int, pairs: int) -> list[tuple[float, float]]:
    """Seconds of the early and of the late token, pair by pair."""
    if isinstance(engine, OpenCache):
        generator = np.random.default_rng(0)
        for part in engine.read_cache(late):
            part[...] = generator.integers(-100, 100, part.shape) if part.dtype == np.int8 else 0.1
    ids = random.Random(0).choices(range(3, engine.vocab_size), k=pairs + 1)
    times = []
    for id in ids:
        pair = []
        for position in (early, late):
            begin = time.perf_counter()
            engine.forward([id], position)
            pair.append(time.perf_counter() - begin)
        times.append((pair[0], pair[1]))
    return times[1:]  # the first pair also makes what the others use


if __name__ == "__main__":
    main()
