"""`phi-edge export`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
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

from export.artifact import Artifact
from export.errors import ExportError

P = ParamSpec("P")
R = TypeVar("R")


def one_line(command: Callable[P, R]) -> Callable[P, R]:
    """The user's fault becomes one line on stderr and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ExportError as error:
            failure = click.ClickException(str(error))
            failure.exit_code = 2
            raise failure from error

    return wrapped


@click.command("export")
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--target", default="cpu", show_default=True, help="cpu, raspberry-pi, android or windows-directml.")
@click.option("--format", help="onnx or executorch; the target has a default.")
@click.option("--scheme", help="Quantisation, such as int4-b32 or fp32; the target has a default.")
@click.option("--context", type=int, help="Longest sequence in tokens; the target has a default.")
@click.option("--activations", help="float16 or float32, in the ONNX graph and its KV cache; the target has a default.")
@click.option("--lengths-as-inputs", is_flag=True, help="windows-directml: no node needs the CPU; not for genai.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@one_line
def export_command(
    checkpoint: str,
    out: Path,
    target: str,
    format: str | None,
    scheme: str | None,
    context: int | None,
    activations: str | None,
    lengths_as_inputs: bool,
    quiet: bool,
) -> None:
    """Export CHECKPOINT to the folder OUT.

    CHECKPOINT is a local folder, a hub id such as microsoft/Phi-3-mini-4k-instruct, or `tiny`, the small Phi-3 that
    ships with this package.
    """
    from export.pipeline import ExportRequest, Progress, export_model

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
    )
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
        artifact = export_model(request, Shown(bars))
    if not quiet:
        click.echo(summary(artifact))


def summary(artifact: Artifact) -> str:
    """An artifact in one screen."""
    manifest = artifact.manifest
    size = sum(file.bytes for file in manifest.files.values())
    total = manifest.memory.total_bytes_per_context[str(manifest.context_tokens)]
    loss = manifest.loss
    lines = [
        f"{artifact.folder}: {manifest.format} for {manifest.target}, {size / 1e6:.1f} MB in {len(manifest.files)} files",
        f"  source   {manifest.source.name}, {manifest.model.parameters / 1e6:.1f} M parameters",
        f"  scheme   {manifest.scheme.name}, activations {manifest.scheme.activations}",
        f"  context  {manifest.context_tokens} tokens, {total / 1e6:.0f} MB with its KV cache",
        f"  stop ids {', '.join(map(str, manifest.tokens.stop))}",
        f"  loss     KL {loss.mean_kl:.4f} nats a token, top-1 agreement {loss.top1_agreement:.0%}",
        f"  digest   {manifest.digest()[:16]}",
    ]
    return "\n".join(lines)
