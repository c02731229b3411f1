"""Text into blocks of token ids: what calibration looks at, and what the loss figures are measured on.

Dialogues go through the checkpoint's own chat template (see export.texts.documents).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from export.checkpoint.chat import TemplateRefusal
from export.checkpoint.open import Checkpoint
from export.errors import CheckpointError, OptionError
from export.models.shape import Config
from export.scheme import Method
from export.texts import CALIBRATION, HELD_OUT
from export.texts.documents import Document, Turn, read_documents
from export.tokenizer.limited import TokenizerError

BLOCK_TOKENS = 512
# Documents are shuffled, so that a few blocks are of many kinds; in the same way each time, so that exports are
# repeatable.
SHUFFLE_SEED = 0

# Blocks of BLOCK_TOKENS that each method looks at, at least and at most. What a block costs grows with the model, what
# it gives does not: between the two, blocks times weights is CALIBRATED_WEIGHTS, which is 8 blocks of Phi-3-mini.
# docs/quality.md says what fewer and more of them give.
CALIBRATION_BLOCKS: Mapping[Method, tuple[int, int]] = {"data-free": (0, 0), "weighted": (8, 32), "gptq": (16, 32)}
CALIBRATED_WEIGHTS = 32_000_000_000
# Blocks that an int8 KV cache's scales come from, at least.
CACHE_BLOCKS = 8
# A pass without calibration is little more than reading and writing: each further token is a tenth of a percent of it.
MEASURED_TOKENS = 80
# By which a budget's pass finds out which tensors need more bits: every tensor costs a forward pass over half of them.
PROBE_TOKENS = 256


def calibration_blocks(method: Method, config: Config, *, int8_cache: bool = False) -> int:
    """How many blocks a method, and an int8 KV cache, look at for a model of this size."""
    least, most = CALIBRATION_BLOCKS[method]
    weights = sum(math.prod(shape) for shape in config.tensor_shapes().values())
    return max(least, min(CALIBRATED_WEIGHTS // weights, most), CACHE_BLOCKS if int8_cache else 0)


def pass_tokens(method: Method, config: Config, *, int8_cache: bool = False) -> int:
    """How many tokens go through each layer in the pass of a method."""
    count = calibration_blocks(method, config, int8_cache=int8_cache)
    return (2 + int8_cache + count) * BLOCK_TOKENS if count else 2 * MEASURED_TOKENS


@dataclass(frozen=True)
class Batch:
    """The text of one pass over the model: `ids` int64 [sequences, tokens], of which the first `measured` give the loss
    figures and the others calibrate; with an int8 KV cache the last `cached` are the measured ones again, which are
    computed with that cache. `probe` int64 [1, tokens], where a budget is to be spent: a piece of the calibration text
    on which each tensor's sensitivity is measured.

    Values go through the pass as [measured + sequences, tokens, ...]: the measured sequences with float weights, then
    all sequences with dequantised ones.
    """

    ids: Tensor
    measured: int
    cached: int = 0
    probe: Tensor | None = None
    notes: Sequence[str] = ()  # what the user's own text gave

    def digest(self) -> str:
        """SHA-256 of all its token ids."""
        digest = hashlib.sha256(self.ids.numpy().tobytes())
        if self.probe is not None:
            digest.update(self.probe.numpy().tobytes())
        return digest.hexdigest()

    def first_values(self) -> Tensor:
        """What the first stage takes."""
        return torch.cat((self.ids[: self.measured], self.ids))

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values with float weights, values with dequantised ones."""
        return values[: self.measured], values[self.measured :]

    def calibration(self, values: Tensor) -> Tensor:
        """The values of the sequences that calibrate; there may be none."""
        return values[2 * self.measured : len(values) - self.cached]

    def compared(self, values: Tensor) -> Tensor:
        """The values that the loss is measured on: both halves, without the calibration, then the cached ones."""
        both = values[: 2 * self.measured]
        return torch.cat((both, values[len(values) - self.cached :])) if self.cached else both


def make_batch(
    checkpoint: Checkpoint, method: Method, calibration: str | None, *, int8_cache: bool = False, budget: bool = False
) -> Batch:
    """The text for a method, and for the spending of a budget. `calibration` is the user's own file; None takes the one
    that ships with us.

    Raises OptionError.
    """
    longest = min(checkpoint.config.rope.original_context_tokens, checkpoint.config.max_position_embeddings)
    count = calibration_blocks(method, checkpoint.config, int8_cache=int8_cache)
    tokens = min(BLOCK_TOKENS if count else MEASURED_TOKENS, longest)
    blocks = text_blocks(checkpoint, HELD_OUT, 1, tokens)
    probe, notes = None, []
    if count or budget:  # once: a pipe cannot be read again
        size = tokens if count else min(PROBE_TOKENS, longest)
        seen = text_blocks(checkpoint, Path(calibration) if calibration else CALIBRATION, max(count, 1), size)
        blocks += seen[:count]
        probe = torch.tensor([seen[0][:PROBE_TOKENS]]) if budget else None
        if calibration and count:
            short = f" of {count} that a longer text gives" if len(seen) < count else ""
            notes.append(f"calibrated on {Path(calibration).name}: {len(seen)} blocks of {tokens} tokens{short}")
    if int8_cache:
        blocks.append(blocks[0])
    return Batch(torch.tensor(blocks), measured=1, cached=int(int8_cache), probe=probe, notes=notes)


def text_blocks(checkpoint: Checkpoint, file: Path, count: int, tokens: int) -> list[list[int]]:
    """The first `count` blocks of `tokens` ids each of a file's documents, in shuffled order; fewer where it ends.

    Raises OptionError where the file cannot be read as text, or is shorter than one block.
    """
    documents = read_documents(file)
    random.Random(SHUFFLE_SEED).shuffle(documents)
    blocks: list[list[int]] = []
    waiting: list[int] = []
    for ids in Encoder(checkpoint).encode(documents):
        waiting += ids
        while len(waiting) >= tokens and len(blocks) < count:
            blocks.append(waiting[:tokens])
            waiting = waiting[tokens:]
        if len(blocks) == count:
            break
    if not blocks:
        raise OptionError(
            f"{file}: has {len(waiting)} tokens; at least {tokens} are needed, better {8 * tokens}: give a longer text"
        )
    return blocks


class Encoder:
    """A checkpoint's tokenizer and chat template: documents into ids."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tokenizer, self.chat = checkpoint.load_tokenizer(), checkpoint.chat

    def encode(self, documents: Iterable[Document]) -> Iterator[list[int]]:
        """Each document's ids. A dialogue is left out where the checkpoint has no chat template, or it refuses it.
        Raises CheckpointError."""
        for document in documents:
            if document.text is not None:
                yield self.ids(document.text, special=True)
            elif document.turns and (text := self.rendered(document.turns)) is not None:
                yield self.ids(text, special=False)

    def ids(self, text: str, *, special: bool) -> list[int]:
        """A text's, with `special` as the tokenizer frames a whole text. Raises CheckpointError."""
        try:
            return self.tokenizer.encode(text, add_special_tokens=special)
        except TokenizerError as error:
            raise CheckpointError(
                f"the checkpoint's tokenizer cannot split {text[:40]!r} ({error}); save it again in its fast form"
            ) from error

    def rendered(self, turns: Sequence[Turn]) -> str | None:
        """A dialogue as the chat template writes it."""
        if self.chat.source is None:
            return None
        try:
            return self.chat.render([{"role": turn.role, "content": turn.content} for turn in turns])
        except TemplateRefusal:  # a template without a system role, say
            return None
