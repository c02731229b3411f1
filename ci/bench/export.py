"""Time our exports and onnxruntime-genai's builder on the same checkpoints: time, peak memory, artifact bytes.

    python ci/bench/export.py --config ../phi-3-mini/config.json --scratch /scratch [--layers 4,8,16,32] [--no-genai]
    git worktree add ../before REVISION
    python ci/bench/export.py --config ... --scratch ... --layers 32 --against ../before --rounds 5

Makes synthetic checkpoints of the real shapes (random weights), one for each number of layers, then runs every export
in a fresh process, in turn, `--rounds` times, and prints one JSON line for each; at the end medians, ratios, and how
cost grows with layers. The checkpoint is read once before each run, so that all find it in the page cache as far as it
fits. Peak memory is the process's own (ru_maxrss). A 32-layer checkpoint of Phi-3-mini takes 7.6 GB of disk, and the
builder 24 GB of memory. With --against, another revision's data-free exports and today's take turns instead.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import click
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent.parent
# Run as a script, this folder comes first on the path, and this very file would be taken for the package `export`.
sys.path[0] = str(ROOT)
from export.models.phi3 import read_config  # noqa: E402

TINY = ROOT / "export" / "tiny"
DATA_FREE = {"cpu": "int4-b64", "android": "int4-b32"}  # target -> scheme


@dataclass(frozen=True, kw_only=True)
class Run:
    """One export in a process of its own."""

    tool: str
    layers: int
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int
    artifact_bytes: int


@dataclass(frozen=True)
class Contender:
    """A command line, and the checkout whose code it runs."""

    command: list[str]
    checkout: Path = ROOT


@click.command()
@click.option("--config", type=click.Path(exists=True, path_type=Path), required=True, help="A Phi-3's config.json.")
@click.option("--scratch", type=click.Path(path_type=Path), required=True, help="A folder on a disk with room.")
@click.option("--layers", default="4,8,16,32", show_default=True)
@click.option("--rounds", default=1, show_default=True, help="How often each export runs, in alternation.")
@click.option("--genai/--no-genai", default=True, help="Also run onnxruntime-genai's builder (needs onnxscript).")
@click.option("--against", type=click.Path(exists=True, path_type=Path), help="A checkout of another revision.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the runs as JSON, and a plot beside it.")
def main(
    config: Path, scratch: Path, layers: str, rounds: int, genai: bool, against: Path | None, out: Path | None
) -> None:
    """Run all tools for all depths and print what they took."""
    runs: list[Run] = []
    for depth in map(int, layers.split(",")):
        checkpoint = scratch / f"checkpoint-{depth}"
        # In a process of its own: a child's ru_maxrss begins with its parent's.
        maker = multiprocessing.get_context("spawn").Process(target=make_checkpoint, args=(config, checkpoint, depth))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise click.ClickException(f"{checkpoint}: the checkpoint could not be made")
        if against is None:
            contenders = export_commands(checkpoint, scratch, genai)
        else:
            contenders = data_free_commands(checkpoint, scratch, {"before": against.resolve(), "today": ROOT})
        for _ in range(rounds):
            for tool, contender in contenders.items():
                read_through(checkpoint)
                runs.append(measure(tool, depth, contender, scratch / "artifact"))
        shutil.rmtree(checkpoint)
    if against is not None:
        click.echo(pairs(runs))
    runs = medians(runs)
    click.echo(table(runs))
    click.echo(growth(runs))
    if out is not None:
        out.write_text(json.dumps([asdict(run) for run in runs], indent=2) + "\n", encoding="utf-8")
        plot(runs, out.with_suffix(".svg"))


def our_export(checkpoint: Path, scratch: Path, target: str) -> list[str]:
    """Our command line for a target, data-free as the builder is, with whichever checkout is on PYTHONPATH."""
    words = [sys.executable, "-P", "-m", "phi_edge", "export", str(checkpoint), str(scratch / "artifact")]
    return [*words, "--quiet", "--target", target, "--scheme", DATA_FREE[target]]


def data_free_commands(checkpoint: Path, scratch: Path, checkouts: dict[str, Path]) -> dict[str, Contender]:
    """Each checkout's data-free exports, those of one target in turns; all write scratch/artifact."""
    return {
        f"{target} {name}": Contender(our_export(checkpoint, scratch, target), checkout)
        for target in DATA_FREE
        for name, checkout in checkouts.items()
    }


def export_commands(checkpoint: Path, scratch: Path, genai: bool) -> dict[str, Contender]:
    """Each tool's command line; all write scratch/artifact."""
    commands = {
        "phi-edge onnx": our_export(checkpoint, scratch, "cpu"),
        "phi-edge executorch": our_export(checkpoint, scratch, "android"),
    }
    if genai:
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint)]
        builder += ["-o", str(scratch / "artifact"), "-p", "int4", "-e", "cpu", "-c", str(scratch / "cache")]
        commands["genai builder"] = builder
    return {tool: Contender(command) for tool, command in commands.items()}


def read_through(checkpoint: Path) -> None:
    """Bring the weights into the page cache."""
    for shard in checkpoint.glob("*.safetensors"):
        with shard.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def medians(runs: list[Run]) -> list[Run]:
    """One run for each tool and depth, with the medians of their times and memory."""
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.layers, run.tool), []).append(run)
    return [
        replace(
            group[0],
            wall_s=median(run.wall_s for run in group),
            cpu_s=median(run.cpu_s for run in group),
            peak_memory_bytes=round(median(run.peak_memory_bytes for run in group)),
        )
        for group in groups.values()
    ]


def make_checkpoint(config: Path, folder: Path, layers: int) -> None:
    """A checkpoint of this config with random bf16 weights, a shard a layer, and the tiny model's tokenizer."""
    content = json.loads(config.read_text()) | {"num_hidden_layers": layers}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(content))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        # The published tokenizer beside the config, where there is one: genai's builder reads it too.
        shutil.copy((config.parent if (config.parent / name).is_file() else TINY) / name, folder / name)
    generator = torch.Generator().manual_seed(0)
    shapes = read_config(content).tensor_shapes()
    weight_map = {name: ".".join(name.split(".")[:3]) + ".safetensors" for name in shapes}
    for shard in dict.fromkeys(weight_map.values()):
        tensors = {}
        for name in (name for name, file in weight_map.items() if file == shard):
            normal = len(shapes[name]) > 1
            weight = torch.randn(shapes[name], generator=generator) * 0.02 if normal else torch.ones(shapes[name])
            tensors[name] = weight.bfloat16()
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def measure(tool: str, layers: int, contender: Contender, artifact: Path) -> Run:
    """Run one command; its artifact is weighed and removed."""
    command, environment = contender.command, os.environ | {"PYTHONPATH": str(contender.checkout)}
    shutil.rmtree(artifact, ignore_errors=True)
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start
    if status:
        raise click.ClickException(f"{tool} ended with status {os.waitstatus_to_exitcode(status)}: {' '.join(command)}")
    size = sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file())
    shutil.rmtree(artifact)
    run = Run(
        tool=tool,
        layers=layers,
        wall_s=round(wall_s, 1),
        cpu_s=round(usage.ru_utime + usage.ru_stime, 1),
        peak_memory_bytes=usage.ru_maxrss * 1024,
        artifact_bytes=size,
    )
    click.echo(json.dumps(asdict(run)))
    return run


def pairs(runs: list[Run]) -> str:
    """Markdown: of each target the times before and today, and their ratio in each round."""
    lines = ["| | before, s | today, s | ratios | median |", "|---|---|---|---|---:|"]
    for target, scheme in DATA_FREE.items():
        for layers in dict.fromkeys(run.layers for run in runs):
            times = [
                [run.wall_s for run in runs if (run.tool, run.layers) == (f"{target} {name}", layers)]
                for name in ("before", "today")
            ]
            ratios = [today / before for before, today in zip(*times, strict=True)]
            columns = [
                ", ".join(f"{value:.{digits}f}" for value in row)
                for row, digits in ((times[0], 1), (times[1], 1), (ratios, 2))
            ]
            lines.append(f"| {target}, {scheme}, {layers} layers | {' | '.join(columns)} | {median(ratios):.2f} |")
    return "\n".join(lines)


def table(runs: list[Run]) -> str:
    """Markdown: every run, and its ratio to the builder's at the same depth where that ran."""
    peers = {run.layers: run for run in runs if run.tool == "genai builder"}
    lines = [
        "| layers | tool | time | peak memory | artifact | time ratio | memory ratio |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        peer = peers.get(run.layers)
        time_ratio = f"{run.wall_s / peer.wall_s:.2f}" if peer else ""
        memory_ratio = f"{run.peak_memory_bytes / peer.peak_memory_bytes:.2f}" if peer else ""
        lines.append(
            f"| {run.layers} | {run.tool} | {run.wall_s:.0f} s | {run.peak_memory_bytes / 1e9:.2f} GB "
            f"| {run.artifact_bytes / 1e9:.2f} GB | {time_ratio} | {memory_ratio} |"
        )
    return "\n".join(lines)


def growth(runs: list[Run]) -> str:
    """Markdown: from the least to the most layers, time over what would be proportional, and memory over memory."""
    lines = ["| tool | layers | time / proportional | memory / memory |", "|---|---|---:|---:|"]
    for tool in dict.fromkeys(run.tool for run in runs):
        mine = sorted((run for run in runs if run.tool == tool), key=lambda run: run.layers)
        for less in mine[:-1]:
            time_ratio = mine[-1].wall_s / less.wall_s * less.layers / mine[-1].layers
            memory_ratio = mine[-1].peak_memory_bytes / less.peak_memory_bytes
            lines.append(f"| {tool} | {less.layers} to {mine[-1].layers} | {time_ratio:.2f} | {memory_ratio:.2f} |")
    return "\n".join(lines)


def plot(runs: list[Run], path: Path) -> None:
    """Cost against layers: time on the left, peak memory on the right."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for tool in dict.fromkeys(run.tool for run in runs):
        mine = [run for run in runs if run.tool == tool]
        axes[0].plot([run.layers for run in mine], [run.wall_s for run in mine], marker="o", label=tool)
        axes[1].plot([run.layers for run in mine], [run.peak_memory_bytes / 1e9 for run in mine], marker="o")
    for axis, title in zip(axes, ("seconds", "peak memory, GB"), strict=True):
        axis.set(title=title, xlabel="layers", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
