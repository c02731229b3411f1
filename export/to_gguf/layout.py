"""A GGUF artifact's one file: what llama.cpp must know first, then the tensors.

The part before the tensors depends on no weight, so its length is known before any is read. The stream fills the
tensors behind it, and it is written last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from export.coverage import Coverage
from export.errors import CheckpointError
from export.job import Job
from export.to_gguf.metadata import ALIGNMENT, MOST_STOPS, Stored, write_metadata
from export.to_gguf.vocabulary import Vocabulary, read_vocabulary
from export.weights.slots import BLOCK_BYTES, BLOCK_WEIGHTS, Interleaved, Slot, SlotId, Slots, block_type
from export.weights.stream import as_bytes
from export.weights.weight_file import WeightFile

FILE = "model.gguf"
CONTEXT_STEP = 256  # of llama.cpp's contexts
FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Not tensors of the checkpoint: these names are llama.cpp's.
LONG, SHORT = SlotId("rope_factors_long.weight"), SlotId("rope_factors_short.weight")


class GgufLayout:
    """model.gguf."""

    files: tuple[str, ...] = (FILE,)
    coverage = Coverage({})

    def __init__(self, job: Job) -> None:
        refuse_switch(job)
        self.job = job
        self.interleaved: Interleaved = {}
        self.vocabulary: Vocabulary | None = read_vocabulary(job.checkpoint)
        self.notes: Sequence[str] = notes(job, self.vocabulary)
        slots = list(slots_of(job))
        self.head = write_metadata(job, self.vocabulary, [stored_as(slot) for slot in slots])
        self.slots: Slots = dict(placed(slots, len(self.head)))
        inside = "int8 by blocks of 32" if job.scheme.bits else job.scheme.float_type
        self.activations = "float32" if inside == "float32" else f"{inside}, inside matrix products"
        self.options: Mapping[str, Any] = {
            "architecture": "phi3",
            "kv_cache": "llama.cpp's own choice, float16 by default",
            "tokenizer": self.vocabulary.kind if self.vocabulary else None,
        }

    def fill(self, sink: WeightFile) -> None:
        """Long rope's factors, of which the checkpoint has no tensors."""
        rope = self.job.checkpoint.config.rope
        for id, factors in ((LONG, rope.long_factor), (SHORT, rope.short_factor)):
            if id in self.slots:
                sink.append(id, as_bytes(torch.tensor(factors, dtype=torch.float32)))

    def finish(self, folder: Path, digests: Mapping[SlotId, str]) -> None:
        """Write what comes before the tensors."""
        with (folder / FILE).open("r+b") as file:
            file.write(self.head)


def refuse_switch(job: Job) -> None:
    """Raises CheckpointError where llama.cpp would take long rope's long factors too early: it goes by the size of its
    context, which it rounds up."""
    rope = job.checkpoint.config.rope
    if rope.type == "longrope" and rope.original_context_tokens % CONTEXT_STEP:
        raise CheckpointError(
            f"original_max_position_embeddings is {rope.original_context_tokens}, and llama.cpp changes the rotation "
            f"of a longrope model at multiples of {CONTEXT_STEP} tokens only; use --format onnx"
        )


def notes(job: Job, vocabulary: Vocabulary | None) -> list[str]:
    """What llama.cpp does otherwise than the model."""
    found = []
    rope, stop = job.checkpoint.config.rope, job.checkpoint.tokens.stop
    if vocabulary is None:
        found.append(
            "llama.cpp has no way of splitting text like this tokenizer's, so that model.gguf has no vocabulary: it "
            "takes token ids alone, which `phi-edge run` gives it"
        )
    elif vocabulary.drops_space and not vocabulary.can_drop_space:
        found.append("llama.cpp keeps white space behind special tokens, and this tokenizer drops it")
    if rope.switches(job.context_tokens):
        found.append(
            f"llama.cpp rotates by the long factors in every sequence once its context is larger than "
            f"{rope.original_context_tokens} tokens, the model only in longer ones: give it a context (-c) of at most "
            f"{rope.original_context_tokens} for these"
        )
    if len(stop) > MOST_STOPS:
        found.append(f"a GGUF file names {MOST_STOPS} ids that end an answer; stop at {stop[MOST_STOPS:]}, too")
    return found


def slots_of(job: Job) -> Iterator[Slot]:
    """The tensors in the order of the file. They have no place yet."""
    config = job.checkpoint.config
    for name, shape in config.tensor_shapes().items():
        precision = job.scheme.precision(name) if len(shape) == 2 else None
        if precision is None:
            yield Slot(SlotId(name), job.scheme.float_type if len(shape) == 2 else "float32", shape, 0, FILE)
            continue
        kind = block_type(precision)
        row = shape[1] // BLOCK_WEIGHTS * BLOCK_BYTES[kind]
        yield Slot(SlotId(name, "blocks"), "uint8", (shape[0], row), 0, FILE, bits=precision.bits, block_type=kind)
    for id, factors in ((LONG, config.rope.long_factor), (SHORT, config.rope.short_factor)):
        if factors:
            yield Slot(id, "float32", (len(factors),), 0, FILE)


def stored_as(slot: Slot) -> Stored:
    """How the file describes a slot."""
    shape = slot.shape
    if slot.block_type:
        shape = (shape[0], shape[1] // BLOCK_BYTES[slot.block_type] * BLOCK_WEIGHTS)
    return Stored(slot.id.tensor, shape, slot.block_type or FLOATS[slot.dtype], slot.length)


def placed(slots: list[Slot], start: int) -> Iterator[tuple[SlotId, Slot]]:
    """The slots one after another, each at a multiple of the alignment."""
    for slot in slots:
        yield slot.id, replace(slot, offset=start)
        start += math.ceil(slot.length / ALIGNMENT) * ALIGNMENT
