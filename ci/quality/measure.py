"""One row of the quality table, measured in a process of its own: `python -m ci.quality.measure ROW RESULT ...`.

The float row comes first: its logits are kept in the cache, and every other row is compared with them.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ci.quality.engine import Engine
from ci.quality.result import Answer, Result
from ci.quality.rows import FLOAT, Row, Workshop, named
from export.checkpoint.open import open_checkpoint
from export.texts import HELD_OUT
from export.texts.documents import read_documents
from export.verify.score.blocks import Block, cut
from export.verify.score.figures import block_mean
from export.verify.score.losses import losses
from export.verify.score.questions import Question
from phi_edge.score.inputs import tokenise
from runtimes.api import Message
from runtimes.text.tokenizer import Tokenizer

ANSWER_TOKENS = 32
QUESTIONS = (
    Question(question="What is the capital of France?", answers=["Paris"], kind="plain"),
    Question(question="How many days are in a week?", answers=["7", "seven"], kind="plain"),
    Question(question="What is the opposite of hot?", answers=["cold"], kind="plain"),
    Question(question="What colour is the sky on a clear day?", answers=["blue"], kind="plain"),
)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every row reads and answers, in the checkpoint's tokens."""

    vocab_size: int
    blocks: Sequence[Block]
    prompts: Sequence[Sequence[int]]  # of QUESTIONS; none where the checkpoint has no chat template
    stop: Sequence[int]
    tokenizer: Tokenizer


def read_inputs(checkpoint: Path, tokens: int) -> Inputs:
    """About `tokens` predicted tokens, evenly from the whole of the held-out text."""
    opened, tokenizer = open_checkpoint(str(checkpoint)), Tokenizer(checkpoint)
    documents = tokenise(read_documents(HELD_OUT), tokenizer)
    return Inputs(
        vocab_size=opened.config.vocab_size,
        blocks=cut(documents, prefix=tokenizer.encode_prompt(""), tokens=tokens),
        prompts=[tokenizer.encode_chat([Message("user", question.question)]) for question in QUESTIONS],
        stop=opened.tokens.stop,
        tokenizer=tokenizer,
    )


def measure(row: Row, inputs: Inputs, workshop: Workshop, reference: Path, made_by: str) -> Result:
    """Make the row's model, read the text and ask the questions. `reference` holds the float logits of all blocks."""
    shutil.rmtree(workshop.folder, ignore_errors=True)
    started = time.perf_counter()
    made = row.make(workshop)
    loaded = time.perf_counter()
    if row.name == FLOAT and not reference.is_file():
        write_logits(made.engine, inputs, reference)
    rows = list(block_rows(inputs, np.load(reference, mmap_mode="r")))
    found = [
        losses(block, theirs if row.name == FLOAT else made.engine.logits(block.ids[:-1], block.first), theirs)
        for block, theirs in zip(inputs.blocks, rows, strict=True)
    ]
    kinds = [each.kind for each in found]
    return Result(
        name=row.name,
        label=row.label,
        group=row.group,
        engine=row.engine,
        command=row.command,
        made_by=made_by,
        tokens=sum(block.scored for block in inputs.blocks),
        blocks=len(inputs.blocks),
        bytes=made.bytes,
        perplexity=block_mean([each.nll for each in found], kinds, np.exp),
        kl=block_mean([each.kl for each in found if each.kl is not None], kinds),
        top1_agreement=block_mean([each.same_top1 for each in found if each.same_top1 is not None], kinds),
        answers=answers(made.engine, inputs),
        make_s=round(loaded - started, 1),
        read_s=round(time.perf_counter() - loaded, 1),
    )


def write_logits(engine: Engine, inputs: Inputs, file: Path) -> None:
    """The engine's logits of all predicted tokens, float32 [tokens, vocab], whole or not at all."""
    part = file.with_suffix(".part")
    total = sum(block.scored for block in inputs.blocks)
    kept = np.lib.format.open_memmap(part, "w+", np.float32, (total, inputs.vocab_size))
    for block, rows in zip(inputs.blocks, block_rows(inputs, kept), strict=True):
        for number, logits in enumerate(engine.logits(block.ids[:-1], block.first)):
            rows[number] = logits
    kept.flush()
    part.rename(file)


def block_rows(inputs: Inputs, logits: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """The rows of each block."""
    start = 0
    for block in inputs.blocks:
        yield logits[start : start + block.scored]
        start += block.scored


def answers(engine: Engine, inputs: Inputs) -> list[Answer]:
    """The most probable tokens, one after the other, until the model ends its turn."""
    found = []
    for question, prompt in zip(QUESTIONS, inputs.prompts, strict=True):
        said: list[int] = []
        while len(said) < ANSWER_TOKENS:
            ids = [*prompt, *said]
            (logits,) = engine.logits(ids, len(ids))
            token = int(np.argmax(logits))
            if token in inputs.stop:
                break
            said.append(token)
        text = b"".join(inputs.tokenizer.bytes[id] for id in said).decode(errors="replace").strip()
        found.append(Answer(question=question.question, said=text, right=question.is_right(text)))
    return found


def main() -> None:
    """The command that ci/bench/quality.py runs for each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row")
    parser.add_argument("result", type=Path)
    for name in ("--checkpoint", "--cache", "--work", "--reference"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--made-by", required=True)
    options = parser.parse_args()
    row, inputs = named(options.row), read_inputs(options.checkpoint, options.tokens)
    workshop = Workshop(
        checkpoint=options.checkpoint,
        vocab_size=inputs.vocab_size,
        folder=options.work,
        cache=options.cache,
        threads=options.threads,
    )
    result = measure(row, inputs, workshop, options.reference, options.made_by)
    result.write(options.result)


if __name__ == "__main__":
    main()
