"""Train the embedded default: a small Phi-3 that knows one narrow field, made from generated text with no download.

`python ci/tiny/train.py --out DIR` writes a checkpoint folder as Hugging Face lays it out, the held-out questions and
text, and a model card with the figures. With --steps the run is reproducible; with --minutes it lasts that long.
"""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import cos, pi
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, python puts ci/tiny/ there

import click
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Phi3Config, Phi3ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from ci.tiny.card import TrainingRun, model_card, write_held_out
from ci.tiny.quantised import int4_weights
from ci.tiny.score import score, unigram_perplexity
from ci.tiny.text import Source, chat_text, held_out_chats, held_out_questions, held_out_text
from ci.tiny.tokenizer import PADDED_VOCAB, STOP_TOKENS, train_tokenizer, write_tokenizer

# Exactly the keys of a real Phi-3-mini-4k, so that every policy that reads them is met.
CONFIG: dict[str, object] = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 755,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 704,
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 755,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": PADDED_VOCAB,
}
TOKENS_PER_STEP = 2048
LONG_ROWS_EVERY = 4
LAST_RATE, WARM_UP_STEPS = 2e-5, 100
QUESTION_WEIGHT = 0.3  # random numbers in questions cannot be predicted; answers can
FIRST_WEIGHT = 8.0  # the first word of an answer decides which kind of answer it is


@dataclass(frozen=True)
class Limit:
    """How far training has come: by steps, or by the clock."""

    steps: int | None
    seconds: float

    def progress(self, step: int, elapsed_s: float) -> float:
        return min(1.0, step / self.steps if self.steps else elapsed_s / self.seconds)


def tokenizer_for(seed: int) -> Tokenizer:
    sample = islice(Source(f"{seed}/tokenizer", held_out=False).dialogues(), 30_000)
    texts = (chat_text(dialogue.messages, open_turn=False) for dialogue in sample)
    return train_tokenizer(part for text in texts for part in re.split(r"<\|\w+\|>", text))


def rows_of_tokens(tokenizer: Tokenizer, source: Source) -> Iterator[Tensor]:
    """Batches [rows, tokens] of whole dialogues end to end; each row starts with a dialogue, its last one is cut."""
    dialogues = source.dialogues()
    ready: list[list[int]] = []
    step = 0
    while True:
        length = 512 if step % LONG_ROWS_EVERY == 0 else 256
        rows: list[list[int]] = []
        while len(rows) < TOKENS_PER_STEP // length:
            row: list[int] = []
            while len(row) < length:
                if not ready:
                    texts = [chat_text(dialogue.messages, open_turn=False) for dialogue in islice(dialogues, 2000)]
                    ready = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
                row += ready.pop()
            rows.append(row[:length])
        yield torch.tensor(rows)
        step += 1


def weighted_loss(logits: Tensor, ids: Tensor, roles: Tensor, assistant: int) -> Tensor:
    """Mean loss over [rows, tokens - 1] predictions; what the assistant says counts in full, its first word more, the
    rest less."""
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    last_role = torch.where(torch.isin(ids, roles), places, 0).cummax(1).values
    spoken = ids.gather(1, last_role)[:, :-1] == assistant
    first = spoken & (places - last_role == 1)[:, :-1]  # between the role and the first word is a line break
    weights = torch.where(first, FIRST_WEIGHT, torch.where(spoken, 1.0, QUESTION_WEIGHT))
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    return (losses * weights.flatten()).sum() / weights.sum()


def train(
    model: Phi3ForCausalLM, tokenizer: Tokenizer, before: TrainingRun, limit: Limit, peak_rate: float
) -> tuple[TrainingRun, Counter[int]]:
    """AdamW with warm-up and cosine, on the device that the model is on. Counts the tokens it saw."""
    compiled = torch.compile(model, dynamic=False)  # two row lengths: two programs, each faster than one for both
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    norms = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": norms, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    roles = torch.tensor([tokenizer.token_to_id(token) for token in ("<|user|>", "<|system|>", "<|assistant|>")])
    roles = roles.to(model.device)
    counts: Counter[int] = Counter()
    source = Source(f"{before.seed}/training{before.steps or ''}", held_out=False)
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, refresh_per_second=1) as bar:
        task = bar.add_task("training", total=1.0)
        for step, ids in enumerate(rows_of_tokens(tokenizer, source)):
            done = limit.progress(step, time.monotonic() - started)
            if done >= 1.0:
                break
            for group in optimizer.param_groups:
                rate = LAST_RATE + (peak_rate - LAST_RATE) * (1 + cos(pi * done)) / 2
                group["lr"] = rate * min(1.0, (step + 1) / WARM_UP_STEPS)
            counts.update(ids.flatten().tolist())
            loss = _backward(compiled, ids.to(model.device), roles)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bar.update(task, completed=done, description=f"step {step} loss {loss:.3f}")
            if step % 100 == 0 and not bar.console.is_terminal:
                print(f"step {step} done {done:.3f} loss {loss:.4f}", flush=True)
    return before.then(step, step * TOKENS_PER_STEP, time.monotonic() - started), counts


def _backward(forward: Callable[..., CausalLMOutputWithPast], ids: Tensor, roles: Tensor) -> float:
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = forward(input_ids=ids, use_cache=False).logits
    loss = weighted_loss(logits, ids, roles, int(roles[-1]))
    torch.autograd.backward(loss)
    return loss.item()


def write_checkpoint(model: Phi3ForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    stops = [tokenizer.token_to_id(token) for token in STOP_TOKENS]
    generation = {"bos_token_id": CONFIG["bos_token_id"], "eos_token_id": stops, "pad_token_id": CONFIG["pad_token_id"]}
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    write_tokenizer(tokenizer, out, model.config.max_position_embeddings)
    tensors = {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Checkpoint folder.")
@click.option("--minutes", default=25.0, show_default=True, help="Training time, where --steps is not given.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps; makes the run reproducible.")
@click.option("--peak-rate", default=2e-3, show_default=True, help="Learning rate after the warm-up.")
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Go on from this checkpoint of ours.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def main(
    out: Path,
    minutes: float,
    steps: int | None,
    peak_rate: float,
    start: Path | None,
    seed: int,
    threads: int,
    device: str,
) -> None:
    """Train the tiny Phi-3 and write its checkpoint, held-out files and model card."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    before = TrainingRun.read(start) if start else TrainingRun(seed, 0, 0, 0, 0.0)
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json")) if start else tokenizer_for(seed)
    model = Phi3ForCausalLM(Phi3Config(**CONFIG, attn_implementation="sdpa")).float()
    if start:
        model.load_state_dict(load_file(start / "model.safetensors"))
    run, counts = train(model.to(device), tokenizer, before, Limit(steps, minutes * 60), peak_rate)
    write_checkpoint(model, tokenizer, out)
    run.write(out)

    # Scored as it will be read: from the bfloat16 file, in float32.
    model = Phi3ForCausalLM.from_pretrained(out, dtype=torch.float32).to(device)
    name = str(run.seed)
    questions, chats, text = held_out_questions(name), held_out_chats(name, 60), held_out_text(name, 70)
    write_held_out(out, questions, chats, text)
    wide = score(model, tokenizer, questions, chats, text)
    with int4_weights(model):
        int4 = score(model, tokenizer, questions, chats, text)
    unigram = unigram_perplexity(counts, tokenizer.encode(text).ids)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained_on = f"{threads} CPU cores" if device == "cpu" else torch.cuda.get_device_name()
    (out / "README.md").write_text(model_card(CONFIG, parameters, run, trained_on, wide, int4, unigram))
    click.echo(f"exact match: float {wide.total}, int4 {int4.total}")
    click.echo(f"perplexity: float {wide.perplexity:.3f}, int4 {int4.perplexity:.3f}, unigram {unigram:.1f}")
    for expected, said in wide.misses:
        click.echo(f"missed: {expected!r} said {said!r}")


if __name__ == "__main__":
    main()
