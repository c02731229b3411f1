"""Which tensors get more bits under a byte budget: those for which a byte lowers the model's KL the most, as measured.

How a tensor's KL is measured in one pass, without going back: the batch holds a text once as the float model computes
it, and once for every tensor met so far. When the pass reaches a layer, all rows go through its float weights, and for
each of its tensors one more row starts from the float row, goes through the layer with that tensor quantised, and joins
the batch. After the head, a row's logits differ from the float row's by what one quantised tensor does to the whole
model. Every weight is read once. For N tensors and T tokens that costs the forward pass of N * T / 2 tokens.

Small KLs of different tensors add up well enough to choose by.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.checkpoint.open import Checkpoint
from export.errors import NumbersError, SpaceError, not_finite
from export.job import Job
from export.models.attention import Cached, attend
from export.models.layers import leaves
from export.models.shape import EMBEDDING, Layer, Model, on_meta
from export.plan import budget_bytes, matrices, stored_bytes, weight_bytes
from export.scheme import Precision, Scheme
from export.strict import read_json
from export.weights.journal import Journal
from export.weights.methods.method import levels_of
from export.weights.methods.quantize import importance_of, quantise_rows
from export.weights.scratch import Scratch

ROWS_AT_ONCE = 8  # rows of the batch that go through a layer together: bounds the memory of the feed-forward
# What a tensor's KL becomes in another precision, as a part of its KL in blocks of 64 (or the scheme's own): with half
# the block, or with a minimum in each of ggml's blocks, from the squared error of a real model's weights; with 8 bits,
# whose step is a sixteenth, its square.
KL_OF_HALF_A_BLOCK = 0.72
KL_OF_8_BITS = 1 / 250
KL_OF_A_MINIMUM = 0.88


@dataclass(frozen=True)
class Choice:
    """A way to store a tensor: its bytes, and the KL in nats a token when this tensor alone is stored so."""

    precision: Precision
    bytes: int
    kl: float


def fit_budget(job: Job, probe: Tensor, journal: Journal, progress: Callable[[str, int], None]) -> Scheme:
    """The job's scheme with the precision of each of the layers' matrices, chosen so that the weight files stay within
    the job's budget, which is enough for the scheme alone (export.plan.check_budget). `probe`: see Batch. What was
    measured is kept beside the journal, for an export that is continued. Raises NumbersError.
    """
    scheme = job.scheme
    assert scheme.linear is not None
    shapes = layer_matrices(job)
    plain = sum(stored_bytes(job, name, shape, scheme.linear) for name, shape in shapes.items())
    # What is left for the layers' matrices; the rest is as it is.
    left = plain + budget_bytes(job) - weight_bytes(job)
    measured = kept_or_measured(job, probe, journal, progress)
    chosen = choose({name: choices(job, name, shape, measured[name]) for name, shape in shapes.items()}, left)
    overrides = {name: choice.precision for name, choice in chosen.items() if choice.precision != scheme.linear}
    return replace(scheme, overrides=overrides)


def layer_matrices(job: Job) -> dict[str, tuple[int, ...]]:
    """The matrices that a budget is spent on, with their shapes."""
    return {name: shape for name, shape in matrices(job).items() if name.startswith("model.layers.")}


def kept_or_measured(
    job: Job, probe: Tensor, journal: Journal, progress: Callable[[str, int], None]
) -> dict[str, float]:
    """The sensitivities, from an interrupted export of the same job or measured now."""
    kept = journal.sensitivities
    if kept.is_file():
        content = read_json(kept, SpaceError, "remove this file and start again")
        if isinstance(content, dict) and content.get("job") == journal.job and content.get("kl"):
            kept_kl: dict[str, float] = content["kl"]
            return kept_kl
    found = sensitivities(job.checkpoint, job.scheme, probe, progress)
    part = kept.with_suffix(".part")
    part.write_text(json.dumps({"job": journal.job, "kl": found}), encoding="utf-8")
    part.replace(kept)
    return found


def choices(job: Job, name: str, shape: tuple[int, ...], kl: float) -> list[Choice]:
    """The ways to store a matrix whose KL is `kl` in the scheme's own precision, smallest first."""
    plain = job.scheme.linear
    assert plain is not None
    ways = [(plain, kl)]
    if job.format == "executorch":
        ways.append((Precision(bits=8, block_size=None), kl * KL_OF_8_BITS))
    else:
        if job.format == "gguf" and plain.symmetric:
            ways.append((replace(plain, symmetric=False), kl * KL_OF_A_MINIMUM))
        elif plain.block_size and plain.block_size > 32:
            ways.append((replace(plain, block_size=plain.block_size // 2), kl * KL_OF_HALF_A_BLOCK))
        ways.append((Precision(bits=8, block_size=plain.block_size), kl * KL_OF_8_BITS))
    return [Choice(precision, stored_bytes(job, name, shape, precision), lost) for precision, lost in ways]


def planned_bytes(job: Job) -> int:
    """Bytes of the weight file, too, where a budget is spent: as much of it as the matrices can take."""
    least = weight_bytes(job)
    if not job.request.has_budget:
        return least
    room = 0
    for name, shape in layer_matrices(job).items():
        sizes = [choice.bytes for choice in choices(job, name, shape, kl=0.0)]
        room += max(sizes) - sizes[0]
    return int(min(budget_bytes(job), least + room))


def choose(tensors: Mapping[str, Sequence[Choice]], max_bytes: float) -> dict[str, Choice]:
    """The choice for every tensor, together within `max_bytes`, for which the smallest choices leave room.

    Greedy: from each tensor's smallest, the step with the largest fall of KL a byte first. A step that does not fit is
    left out and smaller ones are tried. Ties go to the tensor that comes first, so that the choice is the same in every
    run.
    """
    ladders = {name: sorted(choices, key=lambda choice: choice.bytes) for name, choices in tensors.items()}
    chosen = {name: ladder[0] for name, ladder in ladders.items()}
    left = max_bytes - sum(choice.bytes for choice in chosen.values())
    steps = [
        (-(low.kl - high.kl) / (high.bytes - low.bytes), place, rung, name, high)
        for place, (name, ladder) in enumerate(ladders.items())
        for rung, (low, high) in enumerate(itertools.pairwise(ladder))
    ]
    heapq.heapify(steps)
    while steps:
        _, _, _, name, high = heapq.heappop(steps)
        cost = high.bytes - chosen[name].bytes
        if 0 < cost <= left:
            left, chosen[name] = left - cost, high
    return chosen


def sensitivities(
    checkpoint: Checkpoint, scheme: Scheme, probe: Tensor, progress: Callable[[str, int], None]
) -> dict[str, float]:
    """The KL in nats a token on `probe` [1, tokens] when one matrix of the layers alone is stored as the scheme says,
    by the matrix's name. Raises NumbersError."""
    tables = checkpoint.config.rope.tables(probe.shape[1])
    run = Run(checkpoint, scheme, progress, *(torch.from_numpy(table) for table in tables))
    with torch.inference_mode():
        return run.measure(on_meta(checkpoint.config), probe)


@dataclass(frozen=True)
class Run:
    """One measuring pass. `cos` and `sin` [tokens, rotary_dim / 2]."""

    checkpoint: Checkpoint
    scheme: Scheme
    progress: Callable[[str, int], None]
    cos: Tensor
    sin: Tensor

    def measure(self, model: Model, ids: Tensor) -> dict[str, float]:
        """See sensitivities."""
        names: list[str] = []
        embedded = self.loaded(model.get_submodule("model.embed_tokens"), "model.embed_tokens")
        values = model.embed(ids)
        embedded.to("meta")
        for number, layer in enumerate(model.decoder_layers()):
            path = f"model.layers.{number}"
            self.loaded(layer, path)
            changed = []
            for name, row in self.each_tensor_quantised(number, layer, path, values[:1]):
                names.append(name)
                changed.append(row)
            values = torch.cat([self.through(number, layer, values), *changed])
            layer.to("meta")
        return dict(zip(names, self.compared(model, values), strict=True))

    def loaded(self, module: nn.Module, path: str) -> nn.Module:
        """A module of the model with its weights from the checkpoint, in float32."""
        weights = {}
        for name, _ in module.named_parameters():
            stored = self.checkpoint.tensors[f"{path}.{name}"]
            weights[name] = stored.read()
            if not bool(weights[name].isfinite().all()):
                raise not_finite(stored.name)
            self.progress(stored.name, stored.length)
        module.load_state_dict(weights, assign=True)
        return module

    def through(self, number: int, layer: Layer, values: Tensor) -> Tensor:
        """[rows, tokens, hidden] through one layer with the weights that it has."""
        return torch.cat([self.some_through(number, layer, some) for some in torch.split(values, ROWS_AT_ONCE)])

    def some_through(self, number: int, layer: Layer, values: Tensor) -> Tensor:
        config, tokens = self.checkpoint.config, values.shape[1]
        empty = torch.empty(len(values), config.num_key_value_heads, tokens, config.head_dim)
        total = torch.tensor([tokens], dtype=torch.int32)
        qkv = layer.before_attention(values, None)
        cached = Cached(qkv, empty, empty, total - 1, total, self.cos, self.sin)
        return layer.after_attention(values, attend(config.attention(number), cached)[0])

    def each_tensor_quantised(self, number: int, layer: Layer, path: str, row: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(a matrix's name, the layer's output where this matrix alone is quantised), for each of the layer's."""
        for leaf, module in leaves(layer):
            name, weight = f"{path}.{leaf}.weight", module.weight
            precision = self.scheme.precision(name)
            if not isinstance(weight, Tensor) or weight.dim() != 2 or precision is None:
                continue
            inputs: list[Tensor] = []
            handle = module.register_forward_pre_hook(lambda _, given, seen=inputs: seen.append(given[0]))
            self.some_through(number, layer, row)
            handle.remove()
            module.weight = nn.Parameter(self.rounded(weight, precision, inputs[0]), requires_grad=False)
            yield name, self.some_through(number, layer, row)
            module.weight = nn.Parameter(weight, requires_grad=False)

    def rounded(self, weight: Tensor, precision: Precision, inputs: Tensor) -> Tensor:
        """A matrix as it will be stored, near enough: with the weighted search, whatever the scheme's method."""
        rows = quantise_rows(
            weight,
            bits=precision.bits,
            block_size=precision.block_size or weight.shape[1],
            scale_dtype=torch.float32,
            scratch=Scratch(),
            levels=levels_of(precision),
            importance=importance_of(inputs.flatten(0, -2).square().mean(dim=0)),
        )
        return rows.dequantised

    def compared(self, model: Model, values: Tensor) -> list[float]:
        """The mean KL of each row's logits from the first row's, one row at a time."""
        tensors = self.checkpoint.tensors
        for name, _ in model.named_parameters(remove_duplicate=False):
            if not name.startswith(("model.layers.", "model.embed_tokens.")):
                module, _, leaf = name.rpartition(".")
                stored = tensors[name] if name in tensors else tensors[EMBEDDING]  # a tied head
                setattr(model.get_submodule(module), leaf, nn.Parameter(stored.read(), requires_grad=False))
        exact = functional.log_softmax(model.after_logits(model.head(values[:1])), dim=-1)
        found = []
        for row in torch.split(values[1:], 1):
            rounded = functional.log_softmax(model.after_logits(model.head(row)), dim=-1)
            kl = functional.kl_div(rounded, exact, log_target=True, reduction="none").sum(dim=-1).mean()
            if not bool(kl.isfinite()):
                raise NumbersError(
                    "the model's logits on the calibration text are not finite; is the checkpoint whole?"
                )
            found.append(max(float(kl), 0.0))
        return found
