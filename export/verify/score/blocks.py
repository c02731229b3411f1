"""A text cut into blocks: the sequences that are scored, each by itself. It tokenises nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export.errors import OptionError

BLOCK_TOKENS = 256
CONTEXT_TOKENS = 32  # a block's first tokens are read and not predicted: without context every model only guesses
LEAST_SCORED_TOKENS = 16  # the rest of a document that is shorter is left out


@dataclass(frozen=True)
class TokenisedDocument:
    """One document in an artifact's tokens, with what its tokenizer puts in front of a text."""

    kind: str
    ids: Sequence[int]


@dataclass(frozen=True)
class Block:
    """One sequence. Each of ids[first:] is predicted from all ids before it."""

    kind: str  # of its document; the bootstrap draws blocks within a kind
    ids: Sequence[int]
    first: int

    @property
    def scored(self) -> int:
        """How many tokens are predicted."""
        return len(self.ids) - self.first

    @property
    def targets(self) -> Sequence[int]:
        """The tokens that are predicted."""
        return self.ids[self.first :]


def cut(
    documents: Sequence[TokenisedDocument], *, prefix: Sequence[int], tokens: int, most_tokens: int = BLOCK_TOKENS
) -> list[Block]:
    """Blocks of at most `most_tokens` ids in which about `tokens` are predicted, evenly from the whole text.

    `prefix` is what the tokenizer puts in front of a text: every block begins with it. Raises OptionError where the
    text is shorter than one block.
    """
    size = min(BLOCK_TOKENS, most_tokens)
    blocks = [block for document in documents for block in _cut(document, list(prefix), size)]
    longest = sum(len(document.ids) for document in documents)
    if not blocks or longest < size:
        raise OptionError(f"the text has {longest} tokens, and one block is {size}; give a longer text")
    total = sum(block.scored for block in blocks)
    if total <= tokens:
        return blocks
    wanted = max(1, round(len(blocks) * tokens / total))
    return [blocks[index * len(blocks) // wanted] for index in range(wanted)]


def _cut(document: TokenisedDocument, prefix: list[int], size: int) -> list[Block]:
    first = min(CONTEXT_TOKENS, size // 2)
    ids = list(document.ids)
    pieces = [ids[:size]]
    step = size - len(prefix)
    pieces += [prefix + ids[start : start + step] for start in range(size, len(ids), step)]
    return [Block(document.kind, piece, first) for piece in pieces if len(piece) - first >= LEAST_SCORED_TOKENS]
