"""`phi-edge export`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from export.artifact import Artifact
from export.errors import DelegationError, OptionError

if TYPE_CHECKING:
    from export.request import ExportRequest


@click.command("export")
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--target", default="cpu", show_default=True, help="cpu, raspberry-pi, android or windows-directml.")
@click.option("--format", help="onnx or executorch; the target has a default.")
@click.option("--scheme", help="Quantisation, such as int4-b32 or fp32; the target has a default.")
@click.option("--context", type=int, help="Longest sequence in tokens; the target has a default.")
@click.option("--activations", help="float16 or float32, in the ONNX graph and its KV cache; the target has a default.")
@click.option("--lengths-as-inputs", is_flag=True, help="windows-directml: no node needs the CPU; not for genai.")
@click.option("--max-file-size", help="Split ONNX weights into files no larger than this, such as 500MB or 2GB.")
@click.option("--dry-run", is_flag=True, help="Only say what the export and its artifact would take.")
@click.option("--fresh", is_flag=True, help="Forget what an interrupted export has finished; start anew.")
@click.option("--require-full-delegation", is_flag=True, help="Fail (exit 1) where a node leaves the accelerator.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def export_command(
    checkpoint: str,
    out: Path,
    target: str,
    format: str | None,
    scheme: str | None,
    context: int | None,
    activations: str | None,
    lengths_as_inputs: bool,
    require_full_delegation: bool,
    max_file_size: str | None,
    dry_run: bool,
    fresh: bool,
    quiet: bool,
) -> None:
    """Export CHECKPOINT to the folder OUT.

    CHECKPOINT is a local folder, a hub id such as microsoft/Phi-3-mini-4k-instruct, or `tiny`, the small Phi-3 that
    ships with this package.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    from export.pipeline import Progress, export_model
    from export.request import ExportRequest

    class Shown(Progress):
        def __init__(self, bars: Bars) -> None:
            self.bars = bars
            self.task: TaskID | None = None

        def step(self, what: str) -> None:
            self.bars.console.print(f"[dim]{what}[/dim]")

        def weights(self, total_bytes: int) -> None:
            self.task = self.bars.add_task("weights", total=total_bytes, tensor="")

        def read(self, name: str, count: int) -> None:
            if self.task is not None:
                self.bars.update(self.task, advance=count, tensor=name)

    request = ExportRequest(
        checkpoint=checkpoint,
        out=out,
        target=target,
        format=format,
        scheme=scheme,
        context_tokens=context,
        activations=activations,
        lengths_as_inputs=lengths_as_inputs,
        require_full_delegation=require_full_delegation,
        max_file_bytes=parse_size(max_file_size) if max_file_size else None,
        fresh=fresh,
    )
    if dry_run:
        click.echo(plan_text(request))
        return
    columns = (
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[tensor]}"),
    )
    console = Console(stderr=True, quiet=quiet)
    with Bars(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        try:
            artifact = export_model(request, Shown(bars))
        except DelegationError as error:
            raise click.ClickException(str(error)) from error  # a missed requirement: exit 1
    if not quiet:
        click.echo(summary(artifact))


def parse_size(text: str) -> int:
    """500MB, 2GB or a number of bytes -> bytes. Raises OptionError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|MB|KB|)", text.strip().upper())
    if match is None:
        raise OptionError(f"--max-file-size {text!r}: give a number with KB, MB or GB, such as 500MB")
    return int(float(match[1]) * {"GB": 10**9, "MB": 10**6, "KB": 10**3, "": 1}[match[2]])


def plan_text(request: ExportRequest) -> str:
    """What `--dry-run` prints."""
    from export.job import plan_memory, resolve
    from export.plan import make_plan, weight_bytes

    job = resolve(request)
    memory = plan_memory(job, weight_bytes(job))
    plan = make_plan(job, memory)
    devices = job.target.memory_budgets
    lines = [
        f"{job.checkpoint.name} as {job.format} for {job.target.name}, {job.scheme.name}: nothing was written",
        f"  artifact      {plan.artifact_bytes / 1e6:.1f} MB",
        f"  peak memory   {plan.peak_bytes / 1e9:.2f} GB",
        f"  disk          {plan.disk_bytes / 1e9:.2f} GB",
        f"  time          about {plan.expected_s:.0f} s on this machine",
        f"  KV cache      {memory.kv_bytes_per_token / 1024:.1f} KiB a token",
        "",
        f"  {'context':>9}  {'on the device':>13}  " + "  ".join(f"{size:>3} GB" for size in devices),
    ]
    for tokens, resident in plan.resident_bytes_per_context.items():
        verdicts = "  ".join(f"{plan.verdict(tokens, size * 1e9):>6}" for size in devices)
        chosen = "*" if tokens == job.context_tokens else " "
        lines.append(f"  {tokens:>8}{chosen}  {resident / 1e9:>10.2f} GB  {verdicts}")
    lines.append("  (* the context of this export; on the device: weights as the engine packs them, and the KV cache)")
    return "\n".join(lines)


def summary(artifact: Artifact) -> str:
    """An artifact in one screen."""
    manifest = artifact.manifest
    size = sum(file.bytes for file in manifest.files.values())
    total = manifest.memory.total_bytes_per_context[str(manifest.context_tokens)]
    loss = manifest.loss
    lines = [
        f"{artifact.folder}: {manifest.format} for {manifest.target}, "
        f"{size / 1e6:.1f} MB in {len(manifest.files)} files",
        f"  source   {manifest.source.name}, {manifest.model.parameters / 1e6:.1f} M parameters",
        f"  scheme   {manifest.scheme.name}, activations {manifest.scheme.activations}",
        f"  context  {manifest.context_tokens} tokens, {total / 1e6:.0f} MB with its KV cache",
        f"  stop ids {', '.join(map(str, manifest.tokens.stop))}",
        f"  loss     KL {loss.mean_kl:.4f} nats a token, top-1 agreement {loss.top1_agreement:.0%}",
        f"  digest   {manifest.digest()[:16]}",
    ]
    return "\n".join(lines)
