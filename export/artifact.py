"""The artifact: a folder whose manifest.json was written last. The only door out of export/; standard library only.

It does not know how an artifact is made (export.pipeline) nor how it is run (runtimes).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from export.errors import ArtifactError
from export.stranger import not_an_artifact
from export.strict import build, read_json, within

MANIFEST = "manifest.json"
SCHEMA = 2
Format = Literal["onnx", "executorch", "gguf"]
TOKENIZER = "tokenizer.json"
MODEL_SUFFIX: Mapping[Format, str] = {"onnx": ".onnx", "executorch": ".pte", "gguf": ".gguf"}
# A LoRA adapter that a request may choose: its name, and what the name of its file ends with.
ADAPTER_NAME = r"[A-Za-z0-9._-]{1,64}"
ADAPTER_SUFFIX = ".onnx_adapter"


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the artifact: its size and the SHA-256 of its bytes."""

    bytes: int = within(0, 1 << 50)
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter."""

    name: str  # the folder's name
    weight: float  # how much of it was added
    base: str | None  # what it says that it was trained on
    files: Mapping[str, File]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights came from."""

    name: str  # the folder's name, the hub id, or "tiny"
    revision: str | None  # the hub's commit; None for a local folder
    model_type: str
    files: Mapping[str, File]
    adapters: Sequence[Adapter] = ()  # merged into the weights
    side_adapters: Sequence[Adapter] = ()  # files of their own, NAME.onnx_adapter: a request may choose one


@dataclass(frozen=True, kw_only=True)
class Model:
    """The shapes a runtime needs to make its KV cache."""

    # Nobody has more; whoever opens an artifact makes loops and buffers of these numbers.
    layers: int = within(1, 4096)
    hidden_size: int = within(1, 1 << 20)
    heads: int = within(1, 1 << 16)
    kv_heads: int = within(1, 1 << 16)
    head_dim: int = within(1, 1 << 16)
    vocab_size: int = within(1, 1 << 24)
    parameters: int = within(0, 1 << 50)


@dataclass(frozen=True, kw_only=True)
class AppliedScheme:
    """The quantisation as it was really applied. `bits` is None where weights stayed float."""

    name: str
    method: str  # how the codes were found: "data-free", "weighted" or "gptq"
    bits: int | None  # of the layers' matrices; block_size and symmetric, too
    block_size: int | None
    symmetric: bool
    embedding_bits: int | None
    head_bits: int | None
    exceptions: Mapping[str, str]  # matrices that a byte budget stores otherwise -> how, such as "8 bits, blocks of 64"
    activations: str  # how the engine treats activations: "float32", "int8 per row, dynamic"
    kept_wider: Sequence[str]  # tensors left in float, by name pattern


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The rotary policy. A sequence longer than `switch_tokens` takes the long factors from its first token on."""

    type: Literal["default", "longrope"]
    theta: float
    rotary_dim: int
    switch_tokens: int | None = within(1, 1 << 31)
    attention_factor: float


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The ids that mean something to a runtime."""

    bos: int | None
    pad: int | None
    stop: Sequence[int]  # all ids that end an answer, the config's eos first


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the artifact needs on a device, in bytes. export.memory computes it; everybody else reads it here."""

    weights_bytes: int  # of the weight files
    resident_weights_bytes: int  # as the engine keeps them: packed again, partly beside the mapped file
    engine_bytes: int  # the engine's process without a model: interpreter, libraries, scratch
    kv_bytes_per_token: int = within(0, 1 << 40)
    kept_tokens: int | None = within(1, 1 << 31, default=None)  # the most in the KV cache; None: the whole context
    total_bytes_per_context: Mapping[str, int]  # usual context lengths in tokens -> needed_bytes

    def needed_bytes(self, context_tokens: int) -> int:
        """All of it, with the KV cache of a full context. The system's own share is not in it."""
        kept = min(context_tokens, self.kept_tokens or context_tokens)
        return self.resident_weights_bytes + self.engine_bytes + kept * self.kv_bytes_per_token


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What quantisation cost, against the float model on held-out text. All zero for a float scheme.

    Measured layer by layer while the weights stream through, with the dequantised weights in float32 arithmetic: the
    engine's 8-bit activations are not in it. `phi-edge score` measures more text, through the engine.
    """

    text_tokens: int
    worst_group_error: float  # max |w - dequantised w| / that group's max |w|, over all groups
    worst_group_tensor: str
    mean_squared_error: float  # over all quantised weights, relative to their mean square
    max_logit_difference: float
    mean_kl: float  # nats per token, float against quantised
    kl_interval: Sequence[float]  # 95 %, by blocks of 32 tokens; a data-free export's is wide, for it has two
    top1_agreement: float  # share of positions where both prefer the same token
    float_perplexity: float | None
    perplexity: float | None
    zeroed_blocks: int = 0  # too small for a scale of the type that scales are stored in: their weights became 0
    kv_cache_kl: float | None = None  # nats per token, quantised against itself with an int8 KV cache; None for float


# Of a float scheme: nothing is lost, and nothing is measured.
NO_LOSS = Loss(
    text_tokens=0, worst_group_error=0.0, worst_group_tensor="", mean_squared_error=0.0, max_logit_difference=0.0,
    mean_kl=0.0, kl_interval=(0.0, 0.0), top1_agreement=1.0, float_perplexity=None, perplexity=None,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json, whole."""

    schema: int
    format: Format
    target: str
    created_at: str  # the one field that differs between two exports of the same thing
    source: Source
    model: Model
    scheme: AppliedScheme
    engine: Mapping[str, Any]  # the options given to the engine's graph, as applied
    coverage: Mapping[str, Mapping[str, int]]  # where the graph's nodes run -> operator -> how many
    context_tokens: int = within(1, 1 << 24)
    window_tokens: int | None = within(1, 1 << 31)  # sliding window, itself included; None where attention is full
    rope: Rope
    tokens: Tokens
    memory: Memory
    loss: Loss
    tools: Mapping[str, str]
    files: Mapping[str, File]
    notes: Sequence[str] = ()  # what whoever uses it should know: where the checkpoint was not taken as it says
    reference: Mapping[str, Sequence[int]] | None = None  # ids of a "prompt" and its greedy "answer", as it was proved

    def to_json(self) -> str:
        """The manifest as the text of manifest.json."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=False, allow_nan=False) + "\n"

    def digest(self) -> str:
        """SHA-256 over what is exported, not over when and where: equal for two exports of the same thing."""
        content = dataclasses.asdict(self) | {"created_at": None}
        del content["reference"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A sealed folder and its manifest."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """The path of one of the artifact's files. Raises ArtifactError for one that the manifest does not list."""
        if (found := self.find(name)) is None:
            raise ArtifactError(f"{self.folder}: has no file {name}; it has {', '.join(self.manifest.files)}")
        return found

    def find(self, name: str) -> Path | None:
        """The same; None for one that the manifest does not list: whoever put it there did not export it."""
        return self.folder / name if name in self.manifest.files else None

    def strangers(self) -> list[str]:
        """What is in the folder and not in the manifest. Nothing of it is read, pushed or bundled."""
        paths = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if not path.is_dir())
        return sorted({*paths} - {MANIFEST, *self.manifest.files})


def open_artifact(folder: Path) -> Artifact:
    """Read and check the manifest and the files' sizes, not their bytes (see `verify`). Raises ArtifactError."""
    path = folder / MANIFEST
    if not _is_file(path):
        raise ArtifactError(not_an_artifact(folder))
    content = read_json(path, ArtifactError, "export it again")
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        seen = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise ArtifactError(f"{path}: schema {seen!r:.60}; this version reads schema {SCHEMA}; export it again")
    manifest = build(Manifest, content, str(path), ArtifactError)
    _check_ids(path, manifest)
    if not manifest.files:
        raise ArtifactError(f"{path}: lists no files; export it again")
    for name, file in manifest.files.items():
        _check_inside(path, name)
        target = folder / name
        if not _is_file(target):
            raise ArtifactError(f"{folder}: {name:.200} is missing; export it again")
        if target.stat().st_size != file.bytes:
            raise ArtifactError(
                f"{target}: has {target.stat().st_size} bytes, the manifest says {file.bytes}; export it again"
            )
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(f"{target}: leads out of the artifact's folder; export it again")
    return Artifact(folder, manifest)


def verify(artifact: Artifact) -> None:
    """Compare the SHA-256 of every file with the manifest. Raises ArtifactError at the first that differs."""
    for name, file in artifact.manifest.files.items():
        seen = sha256_file(artifact.folder / name)
        if seen != file.sha256:
            raise ArtifactError(
                f"{artifact.folder / name}: changed since the export (sha256 {seen[:12]}…, "
                f"the manifest says {file.sha256[:12]}…); export it again"
            )


def refuse_incomplete(artifact: Artifact) -> None:
    """Raises ArtifactError for a manifest that lists no model of its format, or no tokenizer."""
    for suffix in (TOKENIZER, MODEL_SUFFIX[artifact.manifest.format]):
        if not any(name.endswith(suffix) for name in artifact.manifest.files):
            raise ArtifactError(f"{artifact.folder / MANIFEST}: lists no {suffix}; export it again")


def seal(folder: Path, manifest: Manifest) -> Artifact:
    """Write manifest.json aside, flush it to disk, and rename it: from then on the folder is an artifact."""
    part = folder / (MANIFEST + ".part")
    with part.open("w", encoding="utf-8") as out:
        out.write(manifest.to_json())
        out.flush()
        os.fsync(out.fileno())
    part.replace(folder / MANIFEST)
    return Artifact(folder, manifest)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path, names: Sequence[str], digest: Callable[[Path], str] = sha256_file) -> dict[str, File]:
    """Size and SHA-256 of each named file, in the order given."""
    return {name: File(bytes=(folder / name).stat().st_size, sha256=digest(folder / name)) for name in names}


def _check_ids(path: Path, manifest: Manifest) -> None:
    """Every id that the manifest names must be in its vocabulary."""
    tokens, size = manifest.tokens, manifest.model.vocab_size
    for id in (tokens.bos, tokens.pad, *tokens.stop, *(manifest.reference or {}).get("prompt", ())):
        if id is not None and not 0 <= id < size:
            raise ArtifactError(f"{path}: tokens: {id} is not in the vocabulary of {size}; export it again")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or contains a NUL
        return False


def _check_inside(manifest: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or not pure.parts:
        raise ArtifactError(f"{manifest}: the file name {name!r} climbs out of the folder; do not use this artifact")
