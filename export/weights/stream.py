"""One forward pass of the model, in which every weight is read, quantised, written, used once and forgotten.

That pass is the export's heavy work. Memory is bounded by a few chunks of rows, whatever the model's size, and the
loss figures come with it: the batch holds two rows, one computed with the float weights, one with the dequantised.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor, nn

from export.artifact import Loss
from export.checkpoint.open import Checkpoint
from export.checkpoint.shards import StoredTensor
from export.errors import CheckpointError
from export.models.attention import Cached, attend
from export.models.layers import SplitLinear, replace_layers
from export.models.shape import EMBEDDING, on_meta
from export.scheme import Scheme
from export.system import workers
from export.weights.journal import Journal
from export.weights.loss import ChunkLoss, LossMeter, chunk_loss, no_loss
from export.weights.quantize import quantise_rows
from export.weights.scratch import Scratch
from export.weights.slots import DTYPES, SlotId
from export.weights.weight_file import WeightFile

# Weights per chunk. With a quarter of this an export took half as long again: the workers waited for the interpreter's
# lock. More costs memory and gains nothing.
CHUNK_WEIGHTS = 1 << 20

# What a worker does with some rows of a matrix: (first row, weights, dequantised weights), both float32.
Use = Callable[[int, Tensor, Tensor], None]
Stage = Callable[[Tensor], Tensor]
Progress = Callable[[str, int], None]  # a tensor's name, and bytes of the checkpoint just read


@dataclass(frozen=True)
class Chunk:
    """What a worker makes of some rows of one matrix, to be written."""

    rows: int
    stored: Tensor  # codes, packed, or weights in the type that they are stored in
    scales: Tensor | None = None
    loss: ChunkLoss | None = None


@dataclass
class Stream:
    """The state of one pass: checkpoint, scheme, sink, workers and the meter."""

    checkpoint: Checkpoint
    scheme: Scheme
    sink: WeightFile
    progress: Progress
    threads: int
    meter: LossMeter = field(default_factory=LossMeter)
    scratch: Scratch = field(default_factory=Scratch)

    def __enter__(self) -> Stream:
        # Each worker computes alone: torch's own threads wait for one another at every small operation. So does this
        # thread: helpers that spin between its operations doubled the processor time of an export.
        self.torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self.torch_threads)

    def chunks(self, tensor: StoredTensor, work: Callable[[int, Tensor], Chunk]) -> Iterator[Chunk]:
        """What the workers, a few chunks ahead, make of a matrix, in order; `work` takes (first row, weights)."""
        rows, columns = tensor.shape
        step = max(1, CHUNK_WEIGHTS // columns)
        waiting: deque[Future[Chunk]] = deque()

        @torch.inference_mode()
        def load(start: int) -> Chunk:
            stored = tensor.read_rows(start, min(start + step, rows), self.scratch)
            weight = self.scratch.take("weight", tuple(stored.shape), torch.float32)
            return work(start, weight.copy_(stored))

        starts = iter(range(0, rows, step))
        for start in starts:
            waiting.append(self.pool.submit(load, start))
            if len(waiting) > 2 * self.threads:
                break
        while waiting:
            chunk = waiting.popleft().result()
            if (following := next(starts, None)) is not None:
                waiting.append(self.pool.submit(load, following))
            self.progress(tensor.name, chunk.rows * tensor.row_bytes)
            yield chunk

    def matrix(self, name: str, slot: str | None, bits: int | None, use: Use | None) -> None:
        """Quantise a matrix and write it into `slot`; `use` runs in the workers.

        Without a slot nothing is written: a tied lm_head reads the embedding's bytes.
        """
        codes_id, scales_id = SlotId(slot or name, "codes"), SlotId(slot or name, "scales")
        codes, scales = (self.sink.slot(id) if slot else None for id in (codes_id, scales_id))
        scale_dtype = DTYPES[scales.rounded or scales.dtype] if scales else torch.float32

        def quantise(start: int, weight: Tensor) -> Chunk:
            assert bits and self.scheme.block_size
            rows = quantise_rows(
                weight, bits=bits, block_size=self.scheme.block_size, scale_dtype=scale_dtype, scratch=self.scratch
            )
            loss = chunk_loss(weight, rows)
            if not math.isfinite(loss.squared_weight):
                raise CheckpointError(f"{name}: holds weights that are not finite; download the checkpoint again")
            if use:
                use(start, weight, rows.dequantised)
            packed = rows.pack(codes) if codes else weight.new_empty(0)
            return Chunk(len(weight), packed, rows.scales.to(self.dtype(scales_id)), loss)

        def copy(start: int, weight: Tensor) -> Chunk:
            if use:
                use(start, weight, weight)
            return Chunk(len(weight), weight.to(self.dtype(SlotId(slot or name)), copy=True))

        for chunk in self.chunks(self.checkpoint.tensors[name], quantise if bits else copy):
            if codes and chunk.scales is not None and chunk.loss:
                self.sink.append(codes_id, as_bytes(chunk.stored))
                self.sink.append(scales_id, as_bytes(chunk.scales))
                self.meter.add(name, chunk.loss)
            elif slot:
                self.sink.append(SlotId(slot), as_bytes(chunk.stored))

    def dtype(self, id: SlotId) -> torch.dtype:
        """The type that a float tensor is stored in."""
        slot = self.sink.slot(id)
        return DTYPES[slot.dtype] if slot else torch.float32

    def vector(self, name: str) -> Tensor:
        """Write a norm's weights, in the slot's type, and return them in float32."""
        weight = self.checkpoint.tensors[name].read()
        self.sink.append(SlotId(name), as_bytes(weight.to(self.dtype(SlotId(name)))))
        self.progress(name, self.checkpoint.tensors[name].length)
        return weight


class StreamedLinear(nn.Module):
    """A linear layer whose weights pass through once: x [2, tokens, in] -> [2, tokens, out]. `bias` names a tensor."""

    def __init__(self, stream: Stream, name: str, slot: str | None, bits: int | None, bias: str | None = None) -> None:
        super().__init__()
        self.stream, self.name, self.slot, self.bits, self.bias = stream, name, slot, bits, bias

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty(*x.shape[:2], self.stream.checkpoint.tensors[self.name].shape[0])

        def use(start: int, weight: Tensor, dequantised: Tensor) -> None:
            rows = slice(start, start + len(weight))
            out[0, :, rows], out[1, :, rows] = x[0] @ weight.T, x[1] @ dequantised.T

        self.stream.matrix(self.name, self.slot, self.bits, use)
        return out if self.bias is None else out + self.stream.vector(self.bias)


class StreamedEmbedding(nn.Module):
    """The embedding table, of which only the rows of the text are kept: ids [2, tokens] -> [2, tokens, hidden]."""

    def __init__(self, stream: Stream, name: str) -> None:
        super().__init__()
        self.stream, self.name = stream, name

    def forward(self, ids: Tensor) -> Tensor:
        out = torch.empty(*ids.shape, self.stream.checkpoint.tensors[self.name].shape[1])

        def use(start: int, weight: Tensor, dequantised: Tensor) -> None:
            here = (ids[0] >= start) & (ids[0] < start + len(weight))
            rows = ids[0][here] - start
            out[0, here], out[1, here] = weight[rows], dequantised[rows]

        self.stream.matrix(self.name, self.name, self.stream.scheme.embedding_bits, use)
        return out


class StreamedNorm(nn.Module):
    """An RMS norm whose weights are read when they are needed."""

    def __init__(self, stream: Stream, name: str, epsilon: float) -> None:
        super().__init__()
        self.stream, self.name, self.epsilon = stream, name, epsilon

    def forward(self, x: Tensor) -> Tensor:
        weight = self.stream.vector(self.name)
        return nn.functional.rms_norm(x, weight.shape, weight, self.epsilon)


class StreamedLayerNorm(nn.Module):
    """A layer norm whose weights and bias are read when they are needed."""

    def __init__(self, stream: Stream, path: str, epsilon: float) -> None:
        super().__init__()
        self.stream, self.path, self.epsilon = stream, path, epsilon

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (self.stream.vector(f"{self.path}.{part}") for part in ("weight", "bias"))
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
            bits = stream.scheme.bits if own else stream.scheme.embedding_bits
            return StreamedLinear(stream, EMBEDDING, name if own else None, bits)
        case nn.Linear():
            bias = None if layer.bias is None else f"{path}.bias"
            linear = StreamedLinear(stream, name, name, stream.scheme.bits, bias)
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
    checkpoint: Checkpoint, scheme: Scheme, sink: WeightFile, ids: list[int], progress: Progress, journal: Journal
) -> Loss:
    """Fill every slot that the checkpoint fills, stage by stage, and say what the scheme costs on the text.

    Stages that the journal says are finished are not done again.
    """
    with Stream(checkpoint, scheme, sink, progress, workers()) as stream:
        stages = forward_stages(stream, ids) if scheme.bits else copy_stages(stream)
        values: Tensor = torch.tensor([ids, ids])
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
        return stream.meter.result(ids, values) if scheme.bits else no_loss(ids)


def forward_stages(stream: Stream, ids: list[int]) -> list[Stage]:
    """The forward pass on the text, with streamed layers."""
    config = stream.checkpoint.config
    length = torch.tensor([len(ids)], dtype=torch.int32)
    cos, sin = (torch.from_numpy(table) for table in config.rope.tables(len(ids)))
    empty = torch.empty(2, config.num_key_value_heads, len(ids), config.head_dim)

    model = on_meta(config)
    replace_layers(model, functools.partial(streamed_layer, stream))

    def one_layer(layer: int, qkv: Tensor) -> Tensor:
        return attend(config.attention(layer), Cached(qkv, empty, empty, length - 1, length, cos, sin))[0]

    return model.stages(one_layer)


def copy_stages(stream: Stream) -> list[Stage]:
    """Every tensor written as it is, a stage for each: nothing to compare, so nothing is computed."""

    def copy(tensor: StoredTensor, slot: str) -> Stage:
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


def as_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, without a copy where it is contiguous."""
    view: memoryview = tensor.contiguous().view(torch.uint8).numpy().data
    return view.cast("B")
