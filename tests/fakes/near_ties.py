"""Do two runtimes give the same greedy tokens, and where not, why: the gap between the two tokens' logits here.

Two processors' kernels round differently. Where the two best logits are closer than that, the order may change, and the
answers part for good; anywhere else a difference is a bug.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.artifact import Artifact
from runtimes import GenerateRequest, Message, Runtime, TokenEvent
from runtimes.registry import ENGINES
from runtimes.text.tokenizer import Tokenizer

HELD_OUT = Path(__file__).parents[2] / "export/tiny/held_out.jsonl"
# ONNX Runtime's int4 kernels round activations to int8. Between x86-64 and the emulated Cortex-A76 no logit of 24
# prompts differed by more than 0.66. For text that the model was never taught, whose best logits are close.
KERNELS_APART = 0.7
CLOSE_LOGITS = 0.05  # for questions of its kind, whose answers it knows


@dataclass(frozen=True)
class Parting:
    """The first place where two answers to a prompt differ, and how far apart this machine's logits of the two are."""

    prompt: str
    place: int
    gap: float


def questions(count: int) -> list[str]:
    """Held-out ones, from all categories."""
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    return [str(row["question"]) for row in rows[:: len(rows) // count]][:count]


def partings(
    artifact: Artifact, here: Runtime, there: Runtime, prompts: Sequence[str], *, max_new_tokens: int
) -> list[Parting]:
    """All prompts, as one message each, whose greedy answers are not the same."""
    found = []
    for prompt in prompts:
        request = GenerateRequest(messages=[Message("user", prompt)], max_new_tokens=max_new_tokens)
        ours, theirs = _ids(here, request), _ids(there, request)
        if ours != theirs:
            start = Tokenizer(artifact.folder).encode_chat([Message("user", prompt)])
            found.append(Parting(prompt, *first_gap(artifact, start, ours, theirs)))
    return found


def first_gap(artifact: Artifact, start: Sequence[int], one: Sequence[int], other: Sequence[int]) -> tuple[int, float]:
    """The place of the first difference between two answers to the prompt `start`, and the gap of the logits there."""
    place = next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    place = min(len(one), len(other)) if place is None else place
    engine = ENGINES[artifact.manifest.format](artifact, None)
    logits = engine.forward([*start, *one[:place]], 0, long=False).copy()
    engine.close()
    # Where one answer ended, the other's token is compared with the likeliest stop id.
    stop = max(artifact.manifest.tokens.stop, key=lambda id: logits[id])
    rivals = [answer[place] if place < len(answer) else stop for answer in (one, other)]
    return place, float(abs(logits[rivals[0]] - logits[rivals[1]]))


def _ids(runtime: Runtime, request: GenerateRequest) -> list[int]:
    return [event.id for event in runtime.generate(request) if isinstance(event, TokenEvent)]
