"""Score the tiny model on what it never saw: exact answers to held-out questions, and perplexity of held-out text."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Phi3ForCausalLM

from ci.tiny.text import Dialogue, chat_text
from ci.tiny.tokenizer import PADDED_VOCAB, STOP_TOKENS

WINDOW_TOKENS = 512
MAX_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Tally:
    right: int
    asked: int

    def __str__(self) -> str:
        return f"{100 * self.right / self.asked:.1f} % ({self.right}/{self.asked})"


@dataclass(frozen=True)
class Score:
    """`questions` and `chats` per category; perplexity is per token."""

    questions: dict[str, Tally]
    chats: Tally
    perplexity: float
    misses: tuple[tuple[str, str], ...]

    @property
    def total(self) -> Tally:
        tallies = self.questions.values()
        return Tally(sum(tally.right for tally in tallies), sum(tally.asked for tally in tallies))


def score(
    model: Phi3ForCausalLM, tokenizer: Tokenizer, questions: Sequence[Dialogue], chats: Sequence[Dialogue], text: str
) -> Score:
    model.eval()
    answers = greedy_answers(model, tokenizer, questions)
    right: dict[str, list[bool]] = defaultdict(list)
    for row, answer in zip(questions, answers, strict=True):
        right[row.category].append(answer == row.answer)
    chat_answers = greedy_answers(model, tokenizer, chats)
    return Score(
        questions={category: Tally(sum(hits), len(hits)) for category, hits in right.items()},
        chats=Tally(sum(a == row.answer for row, a in zip(chats, chat_answers, strict=True)), len(chats)),
        perplexity=perplexity(model, tokenizer.encode(text).ids),
        misses=tuple((row.answer, a) for row, a in zip(questions, answers, strict=True) if a != row.answer),
    )


@torch.no_grad()
def greedy_answers(model: Phi3ForCausalLM, tokenizer: Tokenizer, rows: Sequence[Dialogue]) -> list[str]:
    """What the model says after each row's prompt. Prompts of equal length share a batch, so none is padded."""
    stops = torch.tensor([tokenizer.token_to_id(token) for token in STOP_TOKENS], device=model.device)
    prompts = [tokenizer.encode(chat_text(row.prompt, open_turn=True)).ids for row in rows]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    answers = [""] * len(rows)
    for indices in by_length.values():
        batch = torch.tensor([prompts[index] for index in indices], device=model.device)
        spoken = _greedy(model, batch, stops)
        for index, ids in zip(indices, spoken, strict=True):
            answers[index] = tokenizer.decode(ids, skip_special_tokens=False)
    return answers


def _greedy(model: Phi3ForCausalLM, prompts: Tensor, stops: Tensor) -> list[list[int]]:
    """New ids of each row [rows, tokens], without the stop token; a row that never stops is cut."""
    output = model(input_ids=prompts, use_cache=True)
    spoken = []
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    for _ in range(MAX_ANSWER_TOKENS):
        ids = output.logits[:, -1].argmax(-1)
        stopped |= torch.isin(ids, stops)
        if stopped.all():
            break
        spoken.append(ids)
        output = model(input_ids=ids[:, None], past_key_values=output.past_key_values, use_cache=True)
    rows = torch.stack(spoken, 1).tolist() if spoken else [[] for _ in prompts]
    ends = set(stops.tolist())
    return [row[: next((at for at, token in enumerate(row) if token in ends), len(row))] for row in rows]


@torch.no_grad()
def perplexity(model: Phi3ForCausalLM, ids: Sequence[int]) -> float:
    """The text is cut into windows of 512 tokens; every token but a window's first is predicted."""
    loss = 0.0
    predicted = 0
    for start in range(0, len(ids) - 1, WINDOW_TOKENS):
        window = torch.tensor([ids[start : start + WINDOW_TOKENS]], device=model.device)
        logits = model(input_ids=window, use_cache=False).logits[0, :-1].float()
        loss += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
        predicted += window.shape[1] - 1
    return math.exp(loss / predicted)


def unigram_perplexity(counts: Counter[int], ids: Sequence[int]) -> float:
    """Of the model that knows only how often each token occurs in training (one added to every count)."""
    total = sum(counts.values()) + PADDED_VOCAB
    return math.exp(-sum(math.log((counts[token] + 1) / total) for token in ids) / len(ids))
