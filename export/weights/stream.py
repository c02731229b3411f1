"""A checkpoint's matrices and vectors through quantisation into an artifact's files, a chunk of rows at a time.

Which tensor comes when is decided in forward.py.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor

from export.adapters.merged import MergedTensor
from export.checkpoint.open import Checkpoint
from export.checkpoint.quantised import QuantisedTensor
from export.checkpoint.shards import StoredTensor
from export.errors import NumbersError, not_finite
from export.scheme import EMBEDDING, Precision, Scheme
from export.weights.calibration import Batch
from export.weights.loss import ChunkLoss, LossMeter, chunk_loss
from export.weights.methods.blocks import pack_blocks
from export.weights.methods.method import Quantiser, imported_rows, make_quantiser
from export.weights.scratch import Scratch
from export.weights.slots import DTYPES, SUFFIXES, SlotId
from export.weights.weight_file import WeightFile

# Weights per chunk. With a quarter of this an export took half as long again: the workers waited for the interpreter's
# lock. More costs memory and gains nothing.
CHUNK_WEIGHTS = 1 << 20

# What a worker does with some rows of a matrix: (first row, weights, dequantised weights), both float32.
Use = Callable[[int, Tensor, Tensor], None]
Progress = Callable[[str, int], None]  # a tensor's name, and bytes of the checkpoint just read


@dataclass(frozen=True)
class Chunk:
    """What a worker makes of some rows of one matrix, to be written."""

    rows: int
    stored: Tensor  # codes, packed, or weights in the type that they are stored in
    scales: Tensor | None = None
    zero_points: Tensor | None = None  # packed
    loss: ChunkLoss | None = None


@dataclass
class Stream:
    """The state of one pass: checkpoint, scheme, text, sink, workers and the meter."""

    checkpoint: Checkpoint
    scheme: Scheme
    batch: Batch
    sink: WeightFile
    progress: Progress
    threads: int
    activation_limit: float = math.inf  # the largest number of the type in which the artifact computes
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

    def chunks(
        self, tensor: StoredTensor | QuantisedTensor | MergedTensor, work: Callable[[int, int], Chunk]
    ) -> Iterator[Chunk]:
        """What the workers, a few chunks ahead, make of a matrix, in order; `work` takes (first row, the row after the
        last)."""
        rows, columns = tensor.shape
        step = max(1, CHUNK_WEIGHTS // columns)
        waiting: deque[Future[Chunk]] = deque()

        @torch.inference_mode()
        def load(start: int) -> Chunk:
            return work(start, min(start + step, rows))

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

    def weight(self, tensor: StoredTensor | QuantisedTensor | MergedTensor, start: int, stop: int) -> Tensor:
        """Rows start..stop in float32."""
        stored = tensor.read_rows(start, stop, self.scratch)
        weight = self.scratch.take("weight", tuple(stored.shape), torch.float32)
        return weight.copy_(stored)

    def quantiser(self, precision: Precision, slot: str | None, inputs: Tensor | None) -> Quantiser:
        """How a matrix is quantised whose scales go to `slot`. `inputs`: what it is multiplied with, calibration alone;
        None for a table."""
        scales = self.sink.slot(SlotId(slot, "scales")) if slot else None
        blocks = self.sink.slot(SlotId(slot or EMBEDDING, "blocks"))
        scale_dtype = torch.float16 if blocks else torch.float32
        return make_quantiser(
            self.scheme.method,
            precision,
            inputs,
            scale_dtype=DTYPES[scales.rounded or scales.dtype] if scales else scale_dtype,
            block_type=blocks.block_type if blocks else None,
            scratch=self.scratch,
            pool=self.pool,
        )

    def matrix(self, name: str, slot: str | None, quantiser: Quantiser | None, use: Use | None) -> None:
        """Quantise a matrix, or copy it without a quantiser, and write it into `slot`; `use` runs in the workers. One
        that the checkpoint has quantised keeps its codes.

        Without a slot nothing is written: a tied lm_head reads the embedding's bytes.
        """
        tensor = self.checkpoint.tensors[name]
        ids = {kind: SlotId(slot or name, kind) for kind in SUFFIXES}
        codes, points, blocks = (
            self.sink.slot(ids[kind]) if slot else None for kind in ("codes", "zero_points", "blocks")
        )

        def quantise(start: int, stop: int) -> Chunk:
            if isinstance(tensor, QuantisedTensor):
                rows = imported_rows(tensor, start, stop)
                weight = rows.dequantised
            else:
                assert quantiser is not None
                weight = self.weight(tensor, start, stop)
                try:
                    rows = quantiser.rows(weight)
                except NumbersError as error:  # a block's scale is beyond its type
                    whole = bool(weight.isfinite().all())
                    raise (NumbersError(f"{name}: {error}") if whole else not_finite(name)) from error
            loss = chunk_loss(weight, rows)
            if not math.isfinite(loss.squared_weight):
                raise not_finite(name)
            if use:
                use(start, weight, rows.dequantised)
            if blocks and blocks.block_type:
                return Chunk(len(weight), pack_blocks(rows, blocks.block_type), loss=loss)
            packed = rows.pack(codes) if codes else weight.new_empty(0)
            zeros = rows.pack_zero_points() if points else None
            scales = finite(name, rows.scales, self.dtype(ids["scales"]))
            return Chunk(len(weight), packed, scales, zeros, loss)

        def copy(start: int, stop: int) -> Chunk:
            weight = self.weight(tensor, start, stop)
            if use:
                use(start, weight, weight)
            return Chunk(len(weight), finite(name, weight, self.dtype(SlotId(slot or name)), copy=True))

        for chunk in self.chunks(tensor, quantise if quantiser else copy):
            if codes and chunk.scales is not None and chunk.loss:
                self.sink.append(ids["codes"], as_bytes(chunk.stored))
                self.sink.append(ids["scales"], as_bytes(chunk.scales))
                if chunk.zero_points is not None:
                    self.sink.append(ids["zero_points"], as_bytes(chunk.zero_points))
                self.meter.add(name, chunk.loss)
            elif blocks and chunk.loss:
                self.sink.append(ids["blocks"], as_bytes(chunk.stored))
                self.meter.add(name, chunk.loss)
            elif slot:
                self.sink.append(SlotId(slot), as_bytes(chunk.stored))

    def check_range(self, name: str, values: Tensor) -> None:
        """Refuse activations that the artifact's type cannot hold. Raises NumbersError."""
        if self.activation_limit < math.inf and (largest := float(values.abs().amax())) > self.activation_limit:
            raise NumbersError(
                f"{name}: an activation reaches {largest:.3g} on the measured text, and float16 ends at 65504: the "
                "artifact would compute infinities; export with --activations float32, or for cpu if that is refused"
            )

    def dtype(self, id: SlotId) -> torch.dtype:
        """The type that a float tensor is stored in."""
        slot = self.sink.slot(id)
        return DTYPES[slot.dtype] if slot else torch.float32

    def vector(self, name: str) -> Tensor:
        """Write a norm's weights, in the slot's type, and return them in float32."""
        weight = self.checkpoint.tensors[name].read()
        self.sink.append(SlotId(name), as_bytes(finite(name, weight, self.dtype(SlotId(name)))))
        self.progress(name, self.checkpoint.tensors[name].length)
        return weight


def finite(name: str, values: Tensor, dtype: torch.dtype, *, copy: bool = False) -> Tensor:
    """The values in the type that they are stored in. Raises NumbersError where one is not finite, or not in it."""
    stored = values.to(dtype, copy=copy)
    if not bool(torch.isfinite(stored).all()):
        if bool(torch.isfinite(values).all()):
            kind = str(dtype).removeprefix("torch.")
            raise NumbersError(f"{name}: has values beyond {kind}, as which this target stores it; use --target cpu")
        raise not_finite(name)
    return stored


def as_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, without a copy where it is contiguous."""
    view: memoryview = tensor.contiguous().view(torch.uint8).numpy().data
    return view.cast("B")
