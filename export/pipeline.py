"""Checkpoint in, sealed artifact out: the steps of an export, in order."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

from export.artifact import (
    MANIFEST,
    SCHEMA,
    AppliedScheme,
    Artifact,
    Format,
    Loss,
    Manifest,
    Memory,
    Model,
    Rope,
    Source,
    describe_files,
    seal,
)
from export.checkpoint import Checkpoint, open_checkpoint
from export.errors import DelegationError, OptionError, SpaceError
from export.formats import LAYOUTS, Job, Layout, weight_files
from export.journal import Journal, discard
from export.loss import text_ids
from export.memory import memory_room
from export.plan import peak_bytes
from export.scheme import scheme_named
from export.stream import stream_weights
from export.target import target_named
from export.weight_file import WeightFile

TOOLS = ("phi-edge", "torch", "onnx", "onnx-ir", "onnxruntime", "executorch", "optimum", "transformers", "tokenizers")
PLANNED_CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What the user asked for; None takes the target's default."""

    checkpoint: str
    out: Path
    target: str = "cpu"
    format: str | None = None
    scheme: str | None = None
    context_tokens: int | None = None
    activations: str | None = None
    lengths_as_inputs: bool = False
    require_full_delegation: bool = False
    max_file_bytes: int | None = None
    fresh: bool = False  # forget what an interrupted export has finished


class Progress:
    """What an export tells while it works; this one tells nothing. export.command shows a bar."""

    def step(self, what: str) -> None:
        """A new step begins."""

    def weights(self, total_bytes: int) -> None:
        """The weights begin to stream: so many bytes of the checkpoint."""

    def read(self, name: str, count: int) -> None:
        """Another `count` bytes of tensor `name` have been read."""


def export_model(request: ExportRequest, progress: Progress | None = None) -> Artifact:
    """Run one export. Raises ExportError for the user's fault, before anything is written where that is possible.

    The work is done in OUT.part, beside a journal; an export that was interrupted goes on there. Then the finished
    folder is renamed to OUT, and its manifest written last.
    """
    progress = progress or Progress()
    progress.step("reading the checkpoint")
    job = resolve(request)
    work = request.out.with_name(request.out.name + ".part")
    with Journal(work, describe_job(job)) as journal:
        try:
            artifact = export_beside(journal, job, request, progress)
        except BaseException as error:
            if journal.is_empty():
                discard(work)
            elif isinstance(error, SpaceError):
                raise SpaceError(
                    f"{error}; {work} keeps what is finished, and the same command goes on there"
                ) from error
            raise
    discard(work)
    return artifact


def export_beside(journal: Journal, job: Job, request: ExportRequest, progress: Progress) -> Artifact:
    """The export itself, in the journal's folder, up to the sealed OUT."""
    out, folder = request.out, journal.folder / "artifact"
    recover(out, journal)
    check_out(out)
    check_memory(job)
    progress.step(f"tracing {job.checkpoint.config_content['model_type']} for {job.format}")
    layout = LAYOUTS[job.format](job)
    if request.require_full_delegation and layout.coverage.outside:
        raise DelegationError(
            f"not delegated on {job.target.name}: {', '.join(layout.coverage.outside)}; nothing was written"
        )
    if request.fresh:
        journal.forget()
        discard(folder)
    folder.mkdir(exist_ok=True)
    check_disk(out, folder, layout)
    source, loss = fill_weights(job, layout, folder, journal, progress)
    progress.step("writing the rest")
    layout.finish(folder, {name: digest for stage in journal.stages for name, digest in stage.slots.items()})
    for name in job.checkpoint.tokenizer_files:
        shutil.copyfile(job.checkpoint.folder / name, folder / name)
    for name, content in job.checkpoint.made_files.items():
        (folder / name).write_text(content, encoding="utf-8")
    manifest = describe(job, layout, folder, source, loss)
    if out.exists():
        out.rmdir()  # empty: check_out has seen to that
    folder.rename(out)
    return seal(out, manifest)


def recover(out: Path, journal: Journal) -> None:
    """Undo the last rename of an export that was killed before it could seal, so that it goes on from its journal."""
    folder = journal.folder / "artifact"
    if not journal.is_empty() and out.is_dir() and not folder.exists() and not (out / MANIFEST).exists():
        out.rename(folder)


def describe_job(job: Job) -> str:
    """A digest of everything that decides the bytes: options, versions, and the source's files by size and time."""
    source = job.checkpoint
    files = [source.folder / name for name in ("config.json", *source.weight_files, *source.source_files)]
    content = {
        "options": [job.target.name, job.format, job.scheme.name, job.context_tokens, job.activations],
        "more": [job.lengths_as_inputs, job.max_file_bytes],
        "tools": tool_versions(),
        "source": [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def resolve(request: ExportRequest) -> Job:
    """Open the checkpoint and settle every option. Raises OptionError or CheckpointError."""
    target = target_named(request.target)
    format_name = request.format or target.format
    if format_name not in get_args(Format):
        raise OptionError(f"unknown format {format_name!r}; known: {', '.join(get_args(Format))}")
    format: Format = "onnx" if format_name == "onnx" else "executorch"
    if format not in target.formats:
        raise OptionError(f"target {target.name} has no format {format}; it has: {', '.join(target.formats)}")
    scheme = scheme_named(request.scheme or target.schemes[format])
    checkpoint = open_checkpoint(request.checkpoint)
    config = checkpoint.config
    for columns in (config.hidden_size, config.intermediate_size):
        if reason := scheme.refuse_columns(columns):
            raise OptionError(reason)
    if target.provider == "dml" and checkpoint.config_content["model_type"] == "phi3small":
        raise OptionError(
            f"target {target.name} has no block-sparse attention, which phi3small needs; use another target: cpu, "
            "raspberry-pi, android"
        )
    longest = config.max_position_embeddings
    window = longest if target.windows else config.sliding_window or longest
    # ExecuTorch's attention takes a window as a mask over the whole cache, which halves its speed: by default, none.
    unmasked = config.sliding_window or longest if format == "executorch" else window
    context = request.context_tokens or min(target.context_tokens, longest, unmasked)
    if not 1 < context <= longest:
        raise OptionError(f"--context {context}: this model has a context of 2 to {longest} tokens")
    if context > window:
        raise OptionError(
            f"--context {context}: this model's attention slides after {window} tokens, which {target.name} cannot do; "
            f"use {window}"
        )
    activations = request.activations or target.activations[0]
    if activations not in target.activations:
        raise OptionError(f"--activations {activations}: target {target.name} has {', '.join(target.activations)}")
    if activations == "float16" and scheme.bits is None:
        raise OptionError(f"scheme {scheme.name} keeps 32-bit weights: give --activations float32")
    if request.lengths_as_inputs and target.provider != "dml":
        raise OptionError(f"--lengths-as-inputs is for windows-directml; target {target.name} takes an attention mask")
    return Job(
        checkpoint=checkpoint,
        target=target,
        format=format,
        scheme=scheme,
        context_tokens=context,
        activations=activations,
        lengths_as_inputs=request.lengths_as_inputs,
        max_file_bytes=request.max_file_bytes,
        model=describe_model(checkpoint),
    )


def describe_model(checkpoint: Checkpoint) -> Model:
    """The model's facts, through optimum's table of normalised configs, which knows each family's own key names."""
    from optimum.utils.normalized_config import NormalizedConfigManager

    content = checkpoint.config_content
    # phi3small, which optimum has no row for, has phi3's names for these.
    row = {"phi3small": "phi3"}.get(content["model_type"], content["model_type"])
    facts = NormalizedConfigManager.get_normalized_config_class(row)(SimpleNamespace(**content))
    return Model(
        layers=facts.num_layers,
        hidden_size=facts.hidden_size,
        heads=facts.num_attention_heads,
        kv_heads=checkpoint.config.num_key_value_heads,
        head_dim=checkpoint.config.head_dim,
        vocab_size=facts.vocab_size,
        parameters=checkpoint.config.parameters,
    )


def check_out(out: Path) -> None:
    """The output folder must be new or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SpaceError(f"{out}: is not empty; give a new folder, or remove this one first")


def check_memory(job: Job) -> None:
    """The export must not be killed half-way for want of memory."""
    peak, room = peak_bytes(job, plan_memory(job, 0).kv_bytes_per_token), memory_room()
    if room is not None and room.bytes < peak:
        raise SpaceError(
            f"this export needs {peak / 1e9:.1f} GB of memory, {room.bytes / 1e9:.1f} GB are {room.source}; "
            "free some, or raise the limit"
        )


def check_disk(out: Path, folder: Path, layout: Layout) -> None:
    """The disk must hold the weight files, less what an interrupted export has written, and some megabytes."""
    ends: dict[str, int] = {}
    for slot in layout.slots.values():
        ends[slot.file] = max(ends.get(slot.file, 0), slot.end)
    written = sum((folder / name).stat().st_blocks * 512 for name in ends if (folder / name).is_file())
    needed = max(0, sum(ends.values()) - written) + (64 << 20)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SpaceError(f"{out}: needs {needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free; free some space")


def fill_weights(job: Job, layout: Layout, folder: Path, journal: Journal, progress: Progress) -> tuple[Source, Loss]:
    """Stream the checkpoint into the weight files, hashing the source meanwhile."""
    ids = text_ids(job.checkpoint.tokenizer)
    progress.step("quantising" if job.scheme.bits else "copying")
    progress.weights(sum(tensor.length for tensor in job.checkpoint.tensors.values()))
    with ThreadPoolExecutor(1) as hasher, WeightFile(folder, layout.slots, layout.spread) as sink:
        source = hasher.submit(job.checkpoint.describe)
        layout.fill(sink)
        loss = stream_weights(job.checkpoint, job.scheme, sink, ids, progress.read, journal)
        sink.digests()
        progress.step("hashing the source")
        return source.result(), loss


def describe(job: Job, layout: Layout, work: Path, source: Source, loss: Loss) -> Manifest:
    """Everything the manifest says."""
    config, scheme, rope = job.checkpoint.config, job.scheme, job.checkpoint.config.rope
    files = describe_files(work, [*layout.files, *job.checkpoint.artifact_files])
    return Manifest(
        schema=SCHEMA,
        format=job.format,
        target=job.target.name,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        source=source,
        model=job.model,
        scheme=AppliedScheme(
            name=scheme.name,
            bits=scheme.bits,
            block_size=scheme.block_size,
            symmetric=True,
            embedding_bits=scheme.embedding_bits,
            activations=layout.activations,
            kept_wider=kept_wider(job.checkpoint) if scheme.bits else ["*"],
        ),
        engine=layout.options,
        coverage=layout.coverage.counts,
        context_tokens=job.context_tokens,
        window_tokens=config.sliding_window,
        rope=Rope(
            type=rope.type,
            theta=rope.theta,
            rotary_dim=rope.rotary_dim,
            switch_tokens=rope.original_context_tokens if rope.switches(job.context_tokens) else None,
            attention_factor=rope.attention_factor,
        ),
        tokens=job.checkpoint.tokens,
        memory=plan_memory(job, sum(files[name].bytes for name in weight_files(layout.slots))),
        loss=loss,
        tools=tool_versions(),
        files=files,
    )


def kept_wider(checkpoint: Checkpoint) -> list[str]:
    """The tensors that no scheme quantises, as patterns of their names."""
    names = {name.rpartition(".")[2] for name, tensor in checkpoint.tensors.items() if len(tensor.shape) == 1}
    return ["*norm.weight"] + (["*.bias"] if "bias" in names else [])


def plan_memory(job: Job, weights_bytes: int) -> Memory:
    """Weights plus KV cache for each usual context up to the model's own, and for the one exported."""
    model = job.model
    per_token = 2 * model.layers * model.kv_heads * model.head_dim * (2 if job.activations == "float16" else 4)
    longest = job.checkpoint.config.max_position_embeddings
    contexts = sorted({job.context_tokens, *(tokens for tokens in PLANNED_CONTEXTS if tokens <= longest)})
    return Memory(
        weights_bytes=weights_bytes,
        kv_bytes_per_token=per_token,
        total_bytes_per_context={str(tokens): weights_bytes + tokens * per_token for tokens in contexts},
    )


def tool_versions() -> dict[str, str]:
    """The versions of what makes the artifact."""
    return {name: importlib.metadata.version(name) for name in TOOLS if installed(name)}


def installed(name: str) -> bool:
    """Whether a distribution is there to be asked for its version."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
