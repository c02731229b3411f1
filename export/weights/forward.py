"""One forward pass of the model, in which every weight is read, quantised, written, used once and forgotten.

That pass is the export's heavy work. Memory is bounded by a few chunks of rows and the hidden states of the batch,
whatever the model's size. The batch (see Batch) holds a text that is computed twice, with the float weights and with
the dequantised ones, which gives the loss; and the calibration text, computed with the dequantised weights, so that
each layer is quantised for what the quantised layers before it give.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from export.adapters.merged import MergedTensor
from export.artifact import NO_LOSS, Loss
from export.checkpoint.open import Checkpoint
from export.checkpoint.quantised import QuantisedTensor
from export.checkpoint.shards import StoredTensor
from export.models.attention import Cached, attend
from export.models.layers import SplitLinear, replace_layers
from export.models.shape import on_meta
from export.scheme import EMBEDDING, HEAD, Scheme
from export.system import workers
from export.weights.calibration import Batch
from export.weights.journal import Journal
from export.weights.kv_scales import attend_through_cache
from export.weights.loss import logit_figures
from export.weights.slots import SlotId
from export.weights.stream import Progress, Stream
from export.weights.weight_file import WeightFile

Stage = Callable[[Tensor], Tensor]


class StreamedLinear(nn.Module):
    """A linear layer whose weights pass through once: x [sequences, tokens, in] -> [sequences, tokens, out].

    `tensor` is the checkpoint's, `slot` where it goes, `model_name` its name in the model, by which its precision is
    known (a tied lm_head has the embedding's tensor). With `measured_only` the calibration ends here.
    """

    def __init__(
        self,
        stream: Stream,
        tensor: str,
        slot: str | None,
        model_name: str,
        *,
        bias: str | None = None,
        measured_only: bool = False,
    ) -> None:
        super().__init__()
        self.stream, self.tensor, self.slot, self.model_name = stream, tensor, slot, model_name
        self.bias, self.measured_only = bias, measured_only

    def forward(self, x: Tensor) -> Tensor:
        stream, batch = self.stream, self.stream.batch
        precision = stream.scheme.precision(self.model_name)
        inputs = batch.calibration(x) if self.slot is not None and self.model_name != EMBEDDING else None
        quantiser = stream.quantiser(precision, self.slot, inputs) if precision else None
        if self.measured_only:
            x = batch.compared(x)
        out = torch.empty(*x.shape[:-1], stream.checkpoint.tensors[self.tensor].shape[0])
        (x_exact, x_rounded), (exact, rounded) = batch.split(x), batch.split(out)
        # Multiplied from the right: a fifth faster than x @ weight.T for a text of 80 tokens, a tenth for a long one.
        columns_exact, columns_rounded = x_exact.flatten(0, 1).T, x_rounded.flatten(0, 1).T

        def use(start: int, weight: Tensor, dequantised: Tensor) -> None:
            rows = slice(start, start + len(weight))
            exact.flatten(0, 1)[:, rows] = (weight @ columns_exact).T
            rounded.flatten(0, 1)[:, rows] = (dequantised @ columns_rounded).T

        stream.matrix(self.tensor, self.slot, quantiser, use)
        stream.check_range(self.tensor, x_exact)
        stream.check_range(self.tensor, exact)
        return out if self.bias is None else out + stream.vector(self.bias)


class StreamedEmbedding(nn.Module):
    """The embedding table, of which only the rows of the text are kept: ids [sequences, tokens] ->
    [sequences, tokens, hidden]."""

    def __init__(self, stream: Stream, name: str) -> None:
        super().__init__()
        self.stream, self.name = stream, name

    def forward(self, ids: Tensor) -> Tensor:
        stream = self.stream
        out = torch.empty(*ids.shape, stream.checkpoint.tensors[self.name].shape[1])
        (exact_ids, rounded_ids), (exact, rounded) = stream.batch.split(ids), stream.batch.split(out)

        def use(start: int, weight: Tensor, dequantised: Tensor) -> None:
            for some, values, table in ((exact_ids, exact, weight), (rounded_ids, rounded, dequantised)):
                here = (some >= start) & (some < start + len(weight))
                values[here] = table[some[here] - start]

        precision = stream.scheme.precision(self.name)
        stream.matrix(self.name, self.name, stream.quantiser(precision, self.name, None) if precision else None, use)
        return out


class StreamedNorm(nn.Module):
    """An RMS norm whose weights are read when they are needed."""

    def __init__(self, stream: Stream, name: str, epsilon: float) -> None:
        super().__init__()
        self.stream, self.name, self.epsilon = stream, name, epsilon

    def forward(self, x: Tensor) -> Tensor:
        weight = self.stream.vector(self.name)
        self.stream.check_range(self.name, x)
        return nn.functional.rms_norm(x, weight.shape, weight, self.epsilon)


class StreamedLayerNorm(nn.Module):
    """A layer norm whose weights and bias are read when they are needed."""

    def __init__(self, stream: Stream, path: str, epsilon: float) -> None:
        super().__init__()
        self.stream, self.path, self.epsilon = stream, path, epsilon

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (self.stream.vector(f"{self.path}.{part}") for part in ("weight", "bias"))
        self.stream.check_range(self.path, x)
        return nn.functional.layer_norm(x, weight.shape, weight, bias, self.epsilon)


class StreamedSplit(nn.Module):
    """A streamed linear layer whose products belong to parts, as `layer`'s do. Attention rotates them."""

    def __init__(self, linear: StreamedLinear, layer: SplitLinear) -> None:
        super().__init__()
        self.linear, self.layer = linear, layer

    def forward(self, x: Tensor, rotation: None = None) -> Tensor:
        return self.layer.arrange(self.linear(x))


def streamed_layer(stream: Stream, path: str, layer: nn.Module) -> nn.Module | None:
    """What streams through in the place of a page's layer: see replace_layers."""
    name = f"{path}.weight"
    match layer:
        case nn.Linear() if path == "lm_head" and stream.checkpoint.config.tie_word_embeddings:
            own = stream.sink.slot(SlotId(name, "codes")) is not None
            slot, model_name = (name, HEAD) if own else (None, EMBEDDING)
            return StreamedLinear(stream, EMBEDDING, slot, model_name, measured_only=True)
        case nn.Linear():
            bias = None if layer.bias is None else f"{path}.bias"
            linear = StreamedLinear(stream, name, name, name, bias=bias, measured_only=path == "lm_head")
            return StreamedSplit(linear, layer) if isinstance(layer, SplitLinear) else linear
        case nn.Embedding():
            return StreamedEmbedding(stream, name)
        case nn.RMSNorm():
            return StreamedNorm(stream, name, layer.eps or 0.0)
        case nn.LayerNorm():
            return StreamedLayerNorm(stream, path, layer.eps)
    return None


@torch.inference_mode()
def stream_weights(
    checkpoint: Checkpoint,
    scheme: Scheme,
    sink: WeightFile,
    batch: Batch,
    progress: Progress,
    journal: Journal,
    *,
    activation_limit: float = math.inf,
) -> Loss:
    """Fill every slot that the checkpoint fills, stage by stage, and say what the scheme costs on the text.

    Stages that the journal says are finished are not done again. Raises CheckpointError where a weight is not finite,
    or an activation is beyond `activation_limit`.
    """
    with Stream(checkpoint, scheme, batch, sink, progress, workers(), activation_limit) as stream:
        stages = forward_stages(stream) if scheme.linear else copy_stages(stream)
        values = batch.first_values()
        before = set(sink.done)
        finished = journal.resume(sink)
        if finished:
            values, stream.meter = journal.last()
            for name in {id.tensor for id in set(sink.done) - before}:
                if name in checkpoint.tensors:
                    progress(name, checkpoint.tensors[name].length)
        for stage in stages[finished:]:
            before = set(sink.done)
            values = stage(values)
            journal.record(values, stream.meter, {id: sink.done[id] for id in sink.done if id not in before})
        return stream.meter.result(values) if scheme.linear else NO_LOSS


def forward_stages(stream: Stream) -> list[Stage]:
    """The forward pass on the text, with streamed layers; its last stage compares the logits."""
    config, batch = stream.checkpoint.config, stream.batch
    tokens, rows = batch.ids.shape[1], batch.measured + len(batch.ids)
    length = torch.tensor([tokens], dtype=torch.int32)
    cos, sin = (torch.from_numpy(table) for table in config.rope.tables(tokens))
    empty = torch.empty(rows, config.num_key_value_heads, tokens, config.head_dim)

    model = on_meta(config)
    replace_layers(model, functools.partial(streamed_layer, stream))

    def one_layer(layer: int, qkv: Tensor) -> Tensor:
        call = Cached(qkv, empty, empty, length - 1, length, cos, sin)
        if batch.cached:
            return attend_through_cache(stream, layer, call)
        return attend(config.attention(layer), call)[0]

    def figures(values: Tensor) -> Tensor:
        exact, rounded = batch.split(values)
        next_ids = batch.ids[: batch.measured]
        found = [logit_figures(exact, rounded, next_ids=next_ids)]
        if batch.cached:
            rounded, cached = rounded[: batch.measured], rounded[batch.measured :]
            found.append(logit_figures(rounded, cached, next_ids=next_ids))
        return torch.cat(found)

    *stages, head = model.stages(one_layer)
    return [*stages, lambda values: figures(head(values))]


def copy_stages(stream: Stream) -> list[Stage]:
    """Every tensor written as it is, a stage for each: nothing to compare, so nothing is computed."""

    def copy(tensor: StoredTensor | QuantisedTensor | MergedTensor, slot: str) -> Stage:
        def stage(values: Tensor) -> Tensor:
            if len(tensor.shape) == 1:
                stream.vector(tensor.name)
            else:
                stream.matrix(tensor.name, slot, None, None)
            return torch.empty(0)

        return stage

    stages = [copy(tensor, tensor.name) for tensor in stream.checkpoint.tensors.values()]
    if "lm_head.weight" not in stream.checkpoint.tensors and stream.sink.slot(SlotId("lm_head.weight")) is not None:
        # Tied, in a format that cannot share one table.
        stages.append(copy(stream.checkpoint.tensors[EMBEDDING], "lm_head.weight"))
    return stages
