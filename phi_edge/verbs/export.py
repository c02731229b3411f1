"""`phi-edge export`: a checkpoint becomes an artifact. Its options are the fields of export.request.ExportRequest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from export.artifact import Adapter, Artifact
from export.request import ExportRequest, Option, export_options
from phi_edge.files import FOLDER
from phi_edge.habits import CHOICES
from phi_edge.terminal import echo
from phi_edge.verb import Choice, Parsed, Verb
from runtimes.system.size import size_text
from runtimes.terminal import one_line


def click_option(option: Option) -> click.Option:
    """One option of an export as click knows it."""
    if option.parse is None:
        return click.Option([option.flag, option.field], is_flag=True, help=option.help)
    kind: click.ParamType[Any] = Parsed(option.metavar or "text", option.parse)
    if option.choices is not None:
        kind = Choice(option.choices, CHOICES.get(option.flag))
    elif option.parse is int:
        kind = click.INT
    return click.Option(
        [option.flag, option.field],
        type=kind,
        default=option.default,
        multiple=option.repeatable,
        metavar=option.metavar,
        help=option.help,
        show_default=option.default_text or True,
    )


@click.command(
    "export",
    cls=Verb,
    params=[click_option(option) for option in export_options()],
    examples=[
        "phi-edge export tiny my-artifact",
        "phi-edge export microsoft/Phi-3-mini-4k-instruct phi3-android --target android --dry-run",
        "phi-edge export ./my-finetuned-phi3 phi3-pi --target raspberry-pi --scheme int4-b32 --context 4096",
    ],
    groups={
        "What to build": [option.field for option in export_options() if option.shapes_artifact],
    },
    extra="export",
)
@click.argument("checkpoint")
@click.argument("out", type=FOLDER)
@click.option("--dry-run", is_flag=True, help="Write nothing: show the memory, disk and time that it would take.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def export_command(checkpoint: str, out: Path, dry_run: bool, quiet: bool, **options: Any) -> None:
    """Export CHECKPOINT to OUT, a folder that a device can run.

    CHECKPOINT is a local folder, a Hugging Face id such as microsoft/Phi-3-mini-4k-instruct (owner/name@revision for a
    fixed revision), or `tiny`, a small Phi-3 that ships with this package. OUT must be new or empty. If an export is
    interrupted, the same command continues it.
    """
    from phi_edge.progress import export_progress
    from phi_edge.proof import export_model

    request = ExportRequest(checkpoint=checkpoint, out=out, **options)
    if dry_run:
        echo(plan_text(request))
        return
    with export_progress(quiet) as progress:
        artifact = export_model(request, progress)
    if not quiet:
        echo(summary(artifact))


def plan_text(request: ExportRequest) -> str:
    """What `--dry-run` prints."""
    from export.pipeline import resolve_judged
    from export.plan import make_plan, verdict

    job, _ = resolve_judged(request, download=False)
    plan = make_plan(job)
    devices = job.target.memory_budgets
    lines = [
        f"{job.checkpoint.name} as {job.format} for {job.target.name}, {job.scheme.name}: nothing was written",
        f"  artifact      {size_text(plan.artifact_bytes)}",
        f"  peak memory   {size_text(plan.peak_bytes)}",
        f"  disk          {size_text(plan.disk_bytes)}",
        f"  time          about {plan.expected_s:.0f} s on this machine",
        f"  KV cache      {plan.memory.kv_bytes_per_token / 1024:.1f} KiB a token",
        "",
        f"  {'context':>9}  {'on the device':>13}  " + "  ".join(f"{size:>3} GB" for size in devices),
    ]
    for tokens, needed in plan.memory.total_bytes_per_context.items():
        verdicts = "  ".join(f"{verdict(needed, size * 1e9, job.target.system_bytes):>6}" for size in devices)
        chosen = "*" if int(tokens) == job.context_tokens else " "
        lines.append(f"  {tokens:>8}{chosen}  {size_text(needed):>13}  {verdicts}")
    lines.append("  * the context of this export; on the device: weights in memory, the KV cache, the engine")
    return "\n".join(lines)


def adapter_text(adapter: Adapter) -> str:
    """How much of an adapter is in the weights, and what it says that it was trained on."""
    trained = f"trained on {adapter.base!r:.80}" if adapter.base else "it does not say what it was trained on"
    return f"weight {adapter.weight:g}, {trained}"


def summary(artifact: Artifact) -> str:
    """An artifact in one screen."""
    manifest = artifact.manifest
    size = sum(file.bytes for file in manifest.files.values())
    needed = manifest.memory.needed_bytes(manifest.context_tokens)
    loss = manifest.loss
    cache = "" if loss.kv_cache_kl is None else f"; its int8 KV cache {loss.kv_cache_kl:.4f}"
    lines = [
        f"{artifact.folder}: {manifest.format} for {one_line(manifest.target)}, "
        f"{size_text(size)} in {len(manifest.files)} files",
        f"  source   {one_line(manifest.source.name)}, {manifest.model.parameters / 1e6:.1f} M parameters",
        *(f"  adapter  {one_line(f'{each.name}, {adapter_text(each)}')}" for each in manifest.source.adapters),
        f"  scheme   {one_line(f'{manifest.scheme.name}, activations {manifest.scheme.activations}')}",
        f"  context  {manifest.context_tokens} tokens, {size_text(needed)} of memory when it is full",
        f"  stop ids {', '.join(map(str, manifest.tokens.stop))}",
        f"  loss     KL {loss.mean_kl:.4f} nats a token, top-1 agreement {loss.top1_agreement:.0%}{cache}",
        f"  digest   {manifest.digest()[:16]}",
        *(f"  note     {note}" for note in manifest.notes),
    ]
    return "\n".join(lines)
