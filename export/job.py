"""One export: what the user asked for, with every option checked and every default replaced by a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Literal, TypeVar, get_args

from export.adapters.merge import merge_adapters
from export.adapters.side import SideAdapter, side_adapters
from export.artifact import Format, Model
from export.checkpoint.hub import hub_id, outline
from export.checkpoint.open import CHECKPOINT_FILES, Checkpoint, open_checkpoint
from export.checkpoint.quantisation import judged_by_codes
from export.errors import AdapterError, CheckpointError, OptionError
from export.models.shape import Config
from export.request import ExportRequest
from export.scheme import Scheme, scheme_named
from export.target import TARGETS, Target, target_named
from export.to_executorch.sizes import RING_SPARE_TOKENS, ring_tokens
from export.to_onnx.sizes import window_cache_tokens
from export.weights.imported import imported_scheme

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One export. An option without a default of the target is read from `request`, where it is needed."""

    request: ExportRequest
    checkpoint: Checkpoint
    target: Target
    format: Format
    scheme: Scheme
    context_tokens: int
    activations: str
    max_file_bytes: int | None
    side_adapters: Sequence[SideAdapter]
    model: Model

    @property
    def int8_cache(self) -> bool:
        """Whether the KV cache is int8, with scales from the export's pass."""
        return self.request.kv_cache == "int8"

    @property
    def ring_tokens(self) -> int | None:
        """How many tokens an ExecuTorch program's KV cache keeps, where it is a ring; None where it keeps all."""
        window = self.checkpoint.config.sliding_window
        return ring_tokens(window, self.context_tokens) if self.format == "executorch" else None

    @property
    def window_cache_tokens(self) -> int | None:
        """How many tokens ONNX Runtime's KV cache keeps, where it keeps only the window; None where it keeps all."""
        window = self.checkpoint.config.sliding_window
        on_cpu = self.format == "onnx" and not self.target.provider
        model_type = self.checkpoint.config_content["model_type"]
        return window_cache_tokens(window, self.context_tokens, model_type) if on_cpu else None


def resolve(request: ExportRequest) -> Job:
    """Open the checkpoint and check every option. Raises OptionError, CheckpointError or AdapterError."""
    target = target_named(request.target)
    format_name = request.format or target.format
    format = format_named(format_name)
    if format not in target.formats:
        raise OptionError(f"target {target.name} has no format {format}; it has: {', '.join(target.formats)}")
    scheme = scheme_named(request.scheme or target.schemes[format])
    if format == "executorch":
        scheme = scheme.for_executorch()
    elif format == "gguf":
        scheme = scheme.for_gguf()
    if format != "gguf" and scheme.float_type != "float32":
        raise OptionError(f"scheme {scheme.name} is for --format gguf, and {format} keeps floats in 32 bits; use fp32")
    if request.has_budget and scheme.linear is None:
        raise OptionError(f"--max-bytes and --bits-per-weight are for 4-bit schemes, and {scheme.name} keeps float")
    if request.max_bytes is not None and request.bits_per_weight is not None:
        raise OptionError("--max-bytes and --bits-per-weight both give a size: leave one of them out")
    checkpoint = merge_adapters(open_checkpoint(request.checkpoint), request.adapters)
    config = checkpoint.config
    if checkpoint.quantised and scheme.linear is not None:
        if request.has_budget:
            raise OptionError(
                "--max-bytes and --bits-per-weight choose how to quantise, and this checkpoint is quantised already; "
                "leave them out, or give the float checkpoint"
            )
        scheme = imported_scheme(scheme, checkpoint.quantised, format=format, provider=target.provider)
    for columns in (config.hidden_size, config.intermediate_size):
        if reason := scheme.refuse_columns(columns):
            raise OptionError(reason)
    context = resolve_context(request, config, target, format)
    activations = request.activations or target.activations[0]
    if activations not in target.activations:
        raise OptionError(f"--activations {activations}: target {target.name} has {', '.join(target.activations)}")
    if activations == "float16" and scheme.bits is None:
        able = "give --activations float32" if "float32" in target.activations else "take one of 4 bits for this target"
        raise OptionError(f"scheme {scheme.name} keeps 32-bit weights: {able}")
    if request.lengths_as_inputs and target.provider != "dml":
        directml = ", ".join(other.name for other in TARGETS.values() if other.provider == "dml")
        raise OptionError(f"--lengths-as-inputs is for {directml}; target {target.name} takes an attention mask")
    check_block_sparse(checkpoint, target, format, context)
    check_cache(request, checkpoint, target, format, scheme)
    if request.max_file_bytes is not None and format != "onnx":
        raise OptionError(f"--max-file-size splits ONNX weights, and {format} has one file; leave it out")
    if request.calibration == "":
        raise OptionError("--calibration is empty; give a text file, or leave it out")
    looks = scheme.method != "data-free" or request.kv_cache == "int8" or request.has_budget
    if request.calibration is not None and not looks:
        if scheme.imported:
            raise OptionError(
                "--calibration: this checkpoint is quantised already, and its codes are kept; leave it out"
            )
        raise OptionError(
            f"--calibration: scheme {scheme.name} looks at no text; leave it out, or take a scheme with -weighted or "
            "-gptq in its name"
        )
    return Job(
        request=request,
        checkpoint=checkpoint,
        target=target,
        format=format,
        scheme=scheme,
        context_tokens=context,
        activations=activations,
        max_file_bytes=target.max_file_bytes if request.max_file_bytes is None else request.max_file_bytes,
        side_adapters=resolve_side(request, checkpoint, target, format),
        model=describe_model(checkpoint),
    )


# Some options change onnxruntime's graph for the CPU, and no other. Why each of the others cannot have it:
Others = Literal["executorch", "gguf", "provider", "phi3small"]
_FLOAT_CACHE: Mapping[Others, str] = {
    "executorch": "ExecuTorch's attention over int8 keys and values takes several times as long as over float ones",
    "gguf": "llama.cpp is given its cache's type when it starts (--cache-type-k q8_0)",
    "provider": "target {target} has attention over a float cache only",
    "phi3small": "phi3small's block-sparse attention takes a float cache only",
}
_FIXED_WEIGHTS: Mapping[Others, str] = {
    "executorch": "ExecuTorch has its weights inside XNNPACK's programs",
    "gguf": "a GGUF file has the model alone",
    "provider": "{target} has none",
    "phi3small": "phi3small's rows are stored in another order",
}


def other_graph(reasons: Mapping[Others, str], checkpoint: Checkpoint, target: Target, format: Format) -> str | None:
    """The reason of the graph that this export writes; None for onnxruntime's on the CPU."""
    if format != "onnx":
        return reasons[format]
    if target.provider:
        return reasons["provider"].format(target=target.name)
    return reasons["phi3small"] if checkpoint.config_content["model_type"] == "phi3small" else None


def format_named(name: str) -> Format:
    """Raises OptionError with the known ones."""
    known: tuple[Format, ...] = get_args(Format)
    if name not in known:
        raise OptionError(f"unknown format {name!r}; known: {', '.join(known)}")
    return name


def resolve_context(request: ExportRequest, config: Config, target: Target, format: Format) -> int:
    """How many tokens the artifact's context has. Raises OptionError for more than the model, or its attention on the
    target, can do."""
    longest = config.max_position_embeddings
    slides = target.windows and format != "gguf"  # llama.cpp reads a Phi-3's window and does not use it
    window = longest if slides else config.sliding_window or longest
    asked = request.context_tokens
    context = min(default_context(config, target, format), window) if asked is None else asked
    if not 1 < context <= longest:
        raise OptionError(f"--context {context}: this model has a context of 2 to {longest} tokens")
    if context > window:
        raise OptionError(
            f"--context {context}: this model's attention slides after {window} tokens, which "
            f"{'llama.cpp' if format == 'gguf' else target.name} cannot do; use {window}"
        )
    return context


def default_context(config: Config, target: Target, format: Format) -> int:
    """The target's context, or the window where that is a few tokens less: an ExecuTorch program for one token more
    needs a ring in every layer, and takes twice as long to make."""
    window, context = config.sliding_window, target.context_tokens
    if format == "executorch" and window is not None and window < context <= window + RING_SPARE_TOKENS:
        return window
    return context


def check_block_sparse(checkpoint: Checkpoint, target: Target, format: Format, context_tokens: int) -> None:
    """Raises OptionError for a phi3small that the target's provider, or the format, has no attention for."""
    content = checkpoint.config_content
    if content["model_type"] != "phi3small":
        return
    if not target.block_sparse:
        raise OptionError(
            f"target {target.name} has no block-sparse attention, which phi3small needs; use another target: "
            + ", ".join(other.name for other in TARGETS.values() if other.block_sparse)
        )
    if format == "gguf":
        raise OptionError("llama.cpp has no phi3small, so that it cannot be a GGUF file; use --format onnx")
    size, local = (int(content[f"blocksparse_{part}"]) for part in ("block_size", "num_local_blocks"))
    seen = (checkpoint.config.head_dim, size)
    if target.sparse_blocks not in (None, seen) and context_tokens > size * local:
        raise OptionError(
            f"target {target.name}: this checkpoint has heads of {seen[0]} numbers and blocks of {size} tokens; CUDA's "
            f"SparseAttention has {' and '.join(map(str, target.sparse_blocks or ()))} only; give --context "
            f"{size * local}, up to which nothing is left out, or use target cpu"
        )


def check_cache(request: ExportRequest, checkpoint: Checkpoint, target: Target, format: Format, scheme: Scheme) -> None:
    """Raises OptionError where the engine has no such KV cache, or nothing that its scales could come from."""
    if request.kv_cache == "float":
        return
    if request.kv_cache != "int8":
        raise OptionError(f"unknown --kv-cache {request.kv_cache!r}; known: float, int8")
    what = other_graph(_FLOAT_CACHE, checkpoint, target, format)
    if what is None and scheme.linear is None:
        what = f"scheme {scheme.name} is copied, so that no text is computed which its scales could come from"
    elif what is None and request.side_adapters:
        what = "its scales fit the keys and values without side adapters; merge one with --adapter"
    if what is not None:
        raise OptionError(f"--kv-cache int8: {what}; leave it out")


def sketch(request: ExportRequest, judge: Callable[[Job], T]) -> tuple[Job, T] | None:
    """The job of a hub id, from an outline of its checkpoint: to judge every option, and to plan, before the weights
    are downloaded. None where there is nothing to download, or where only the tensors can tell. `judge` sees it while
    the outline's files are there; what it returns comes along. Raises as `resolve` and `judge` do."""
    if hub_id(request.checkpoint) is None:
        return None
    with outline(request.checkpoint, CHECKPOINT_FILES) as folder:
        if folder is None or judged_by_codes(folder):
            return None
        try:
            job = resolve(replace(request, checkpoint=str(folder)))
            judged = judge(job)
        except (AdapterError, CheckpointError, OptionError) as error:
            raise type(error)(str(error).replace(str(folder), request.checkpoint)) from error
    return replace(job, request=request, checkpoint=replace(job.checkpoint, name=request.checkpoint)), judged


def resolve_side(
    request: ExportRequest, checkpoint: Checkpoint, target: Target, format: Format
) -> Sequence[SideAdapter]:
    """The adapters that stay beside the weights. Raises OptionError where the engine cannot exchange them."""
    if not request.side_adapters:
        return ()
    what = other_graph(_FIXED_WEIGHTS, checkpoint, target, format)
    if what is not None:
        raise OptionError(f"--side-adapter: {what}, so adapters cannot be exchanged there; merge one with --adapter")
    return side_adapters(checkpoint, request.side_adapters)


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
