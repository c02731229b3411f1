"""Checkpoint in, sealed artifact out: the steps of an export, in order."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from export.artifact import (
    SCHEMA,
    AppliedScheme,
    Artifact,
    File,
    Loss,
    Manifest,
    Rope,
    Source,
    describe_files,
    open_artifact,
    seal,
    sha256_file,
)
from export.checkpoint.open import Checkpoint
from export.errors import DelegationError, NumbersError, ProofError, SpaceError
from export.formats import LAYOUTS, Layout
from export.job import Job, resolve, sketch
from export.memory import plan_memory
from export.plan import check_disk, check_free, check_memory, check_sizes, judge
from export.request import ExportRequest, export_options
from export.system import seldom_collected, tool_versions
from export.verify.hashing import HashingProcess
from export.verify.proof import Prover
from export.weights.calibration import Batch
from export.weights.forward import stream_weights
from export.weights.imported import imported_notes
from export.weights.journal import Journal
from export.weights.layout_file import LAYOUT, describe_layout, write_layout
from export.weights.methods.budget import fit_budget, planned_bytes
from export.weights.slots import SlotId, weight_files
from export.weights.weight_file import WeightFile
from export.weights.work_folder import check_out, discard, publish, real_path, recover, work_folder

FLOAT16_MAX = 65504.0


class Progress:
    """What an export reports while it works; this one reports nothing. phi_edge.progress shows a bar."""

    def step(self, what: str) -> None:
        """A new step begins."""

    def weights(self, total_bytes: int) -> None:
        """The weights begin to stream: so many bytes of the checkpoint."""

    def read(self, name: str, count: int) -> None:
        """Another `count` bytes of tensor `name` have been read."""


def export_model(request: ExportRequest, progress: Progress | None = None, prover: Prover | None = None) -> Artifact:
    """Run one export. Without a prover the result is sealed as it is. Raises ExportError for the user's fault, before
    anything is written where that is possible.

    The work is done in OUT.part, beside a journal (in a folder inside OUT where OUT is there already); an export that
    was interrupted goes on there. Then the finished files get to OUT, and the manifest is written last.
    """
    progress = progress or Progress()
    progress.step("reading the checkpoint")
    job, batch = resolve_judged(request)
    out = real_path(request.out)
    work = work_folder(out)
    with Journal(work, describe_job(job, batch)) as journal, seldom_collected():
        try:
            if not journal.is_finished(out) or request.fresh:
                export_beside(journal, job, batch, replace(request, out=out), progress, prover)
        except BaseException as error:
            if journal.is_empty() or isinstance(error, (NumbersError, ProofError)):
                discard(work)
            elif isinstance(error, SpaceError):
                raise SpaceError(
                    f"{error}; {work} keeps what is finished, and the same command goes on there"
                ) from error
            raise
    discard(work)
    return open_artifact(request.out)


def resolve_judged(request: ExportRequest, *, download: bool = True) -> tuple[Job, Batch]:
    """The job and its text, once all has been refused that can be before any work, and as much as possible before
    gigabytes are fetched: OUT, every option, too little memory for them, a budget or a text that is too small. Without
    `download` a checkpoint of the hub is known by its outline alone, where it is not here already. Raises ExportError.
    """
    out = real_path(request.out)
    work = work_folder(out)
    if not work.exists():  # else an interrupted export goes on
        check_out(out, work)
    known = sketch(request, judge)
    if known is not None:
        check_memory(known[0])
        if not download:
            return known
    job = resolve(request)
    if known is None:
        return job, judge(job)
    check_sizes(job)
    return job, known[1]


def export_beside(
    journal: Journal, job: Job, batch: Batch, request: ExportRequest, progress: Progress, prover: Prover | None
) -> None:
    """The export itself, in the journal's folder, up to the sealed OUT."""
    out, folder = request.out, journal.folder / "artifact"
    if not journal.is_empty():
        recover(folder, out)
    check_out(out, journal.folder)
    check_memory(job)
    if journal.starts_anew(fresh=request.fresh):  # another job's files are longer, or have other names
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        check_free(out, journal.folder, planned_bytes(job))
    if batch.probe is not None:
        progress.step("measuring which tensors need more bits")
        progress.weights(sum(tensor.length for tensor in job.checkpoint.tensors.values()))
        job = replace(job, scheme=fit_budget(job, batch.probe, journal, progress.read))
    with contextlib.closing(HashingProcess(source_files(job))) as hashing:
        manifest = fill_folder(journal, job, batch, out, progress, prover, hashing)
    publish(folder, out)
    seal(out, manifest)


def fill_folder(
    journal: Journal,
    job: Job,
    batch: Batch,
    out: Path,
    progress: Progress,
    prover: Prover | None,
    hashing: HashingProcess,
) -> Manifest:
    """Write every file of the artifact but the manifest into the journal's folder."""
    folder = journal.folder / "artifact"
    progress.step(f"tracing {job.checkpoint.config_content['model_type']} for {job.format}")
    layout = LAYOUTS[job.format](job)
    if job.request.require_full_delegation and layout.coverage.outside:
        raise DelegationError(
            f"not delegated on {job.target.name}: {', '.join(layout.coverage.outside)}; nothing was written"
        )
    folder.mkdir(exist_ok=True)
    check_disk(out, folder, layout)
    copy_tokenizer(job.checkpoint, folder)
    if prover:
        prover.prepare(folder, job.format)
    loss, digests = fill_weights(job, batch, layout, folder, journal, progress)
    progress.step("writing the rest")
    layout.finish(folder, digests)
    write_layout(folder, describe_layout(job.checkpoint.config.tensor_shapes(), layout.slots, layout.interleaved))
    names = [*layout.files, LAYOUT, *job.checkpoint.artifact_files]
    # Hashed beside the run, whose engine keeps one core busy while it loads; by then the source's hashes may still be
    # under way.
    with ThreadPoolExecutor(1) as hasher:
        files = hasher.submit(describe_files, folder, names)
        manifest = describe(job, batch, layout, unhashed(folder, names), describe_source(job, lambda _: ""), loss)
        if prover:
            progress.step("running it")
            proof = prover.run(Artifact(folder, manifest))
            manifest = replace(manifest, reference=proof.reference)
            for remark in proof.remarks:
                progress.step(remark)
        return replace(manifest, source=describe_source(job, hashing.digest), files=files.result())


def source_files(job: Job) -> list[Path]:
    """Everything that the manifest's source names."""
    adapters = [*job.checkpoint.adapters, *(side.folder for side in job.side_adapters)]
    files = [job.checkpoint.folder / name for name in job.checkpoint.described_files]
    return files + [file for adapter in adapters for file in adapter.files]


def describe_source(job: Job, digest: Callable[[Path], str]) -> Source:
    """The checkpoint, and the adapters that a request may choose. Running the artifact needs no digests."""
    side_adapters = [side.folder.describe(digest) for side in job.side_adapters]
    return replace(job.checkpoint.describe(digest), side_adapters=side_adapters)


def copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """The tokenizer's files, as they are or as they were made."""
    for name in checkpoint.tokenizer_files:
        shutil.copyfile(checkpoint.folder / name, folder / name)
    for name, content in checkpoint.made_files.items():
        (folder / name).write_text(content, encoding="utf-8")


def describe_job(job: Job, batch: Batch) -> str:
    """A digest of everything that decides the bytes: options, text, code, and the source's files by size and time."""
    source = job.checkpoint
    files = [source.folder / name for name in ("config.json", *source.weight_files, *source.source_files)]
    adapters = [*source.adapters, *(side.folder for side in job.side_adapters)]
    files += [file for adapter in adapters for file in adapter.files]
    shaping = [option.field for option in export_options() if option.shapes_artifact]
    # What an option names is described by its content.
    asked = {
        name: getattr(job.request, name) for name in shaping if name not in ("adapters", "side_adapters", "calibration")
    }
    content = {
        "asked": asked,
        "defaults": [job.target.name, job.format, job.scheme.name, job.context_tokens, job.activations],
        "text": batch.digest(),
        "tools": tool_versions(job.format),
        "code": [sha256_file(file) for file in sorted(Path(__file__).parent.rglob("*.py"))],
        "adapters": [len(source.adapters), *((adapter.name, adapter.weight) for adapter in adapters)],
        "source": [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def fill_weights(
    job: Job, batch: Batch, layout: Layout, folder: Path, journal: Journal, progress: Progress
) -> tuple[Loss, dict[SlotId, str]]:
    """Stream the checkpoint into the weight files; -> the slots' digests too."""
    progress.step("quantising" if job.scheme.linear else "copying")
    progress.weights(sum(tensor.length for tensor in job.checkpoint.tensors.values()))
    with WeightFile(folder, layout.slots, layout.interleaved) as sink:
        layout.fill(sink)
        limit = FLOAT16_MAX if job.activations == "float16" else math.inf
        loss = stream_weights(job.checkpoint, job.scheme, sink, batch, progress.read, journal, activation_limit=limit)
        return loss, sink.digests()


def loss_notes(loss: Loss) -> list[str]:
    """What became of weights, where it is not what their scheme does to them."""
    if not loss.zeroed_blocks:
        return []
    return [f"{loss.zeroed_blocks} blocks of weights are too small for a scale of their type and were stored as 0"]


def unhashed(folder: Path, names: Sequence[str]) -> dict[str, File]:
    """The files' sizes alone: all that running them needs."""
    return {name: File(bytes=(folder / name).stat().st_size, sha256="") for name in names}


def describe(job: Job, batch: Batch, layout: Layout, files: Mapping[str, File], source: Source, loss: Loss) -> Manifest:
    """Everything the manifest says."""
    config, scheme, rope = job.checkpoint.config, job.scheme, job.checkpoint.config.rope
    return Manifest(
        schema=SCHEMA,
        format=job.format,
        target=job.target.name,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        source=source,
        model=job.model,
        scheme=AppliedScheme(
            name=scheme.name,
            method="imported" if scheme.imported else scheme.method,
            bits=scheme.bits,
            block_size=scheme.block_size,
            symmetric=scheme.linear is None or scheme.linear.symmetric,
            embedding_bits=scheme.embedding_bits,
            head_bits=scheme.head_bits(tied=config.tie_word_embeddings),
            exceptions={name: str(precision) for name, precision in scheme.overrides.items()},
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
        tools=tool_versions(job.format),
        files=files,
        notes=[
            *job.checkpoint.notes,
            *imported_notes(job.scheme, job.request.scheme),
            *batch.notes,
            *loss_notes(loss),
            *layout.notes,
        ],
    )


def kept_wider(checkpoint: Checkpoint) -> list[str]:
    """The tensors that no scheme quantises, as patterns of their names."""
    names = {name.rpartition(".")[2] for name, tensor in checkpoint.tensors.items() if len(tensor.shape) == 1}
    return ["*norm.weight"] + (["*.bias"] if "bias" in names else [])
