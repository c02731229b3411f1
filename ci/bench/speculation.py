"""Time answers with and without guesses (`speculate`), in turn, and compare their tokens.

    python ci/bench/speculation.py ARTIFACT... [--rounds 3] [--max-new-tokens 160] [--only summarise] [--json out.json]

The artifacts are of a real model that answers, as SmolLM2's (ci/real_model.py). Twelve prompts ask for text that
repeats them, eight do not. A small model does not always do as it is asked, so a row says how much of its plain answer
is text of the prompt, and one of the means is of the answers that are so by half or more.

Greedy; each round answers a prompt both ways, one after the other, so that a drifting machine hurts both alike. Decode
speed is that of the tokens after the first; a ratio is the median of the rounds' ratios. The 95 % interval of the
geometric mean over prompts is a bootstrap's, which resamples the prompts.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

# Run as a script, this folder comes first on the path, and export.py in it would be taken for the package `export`.
sys.path[0] = str(Path(__file__).parent.parent.parent)
from devices.measure.intervals import RESAMPLES, SEED, interval  # noqa: E402
from export.artifact import Artifact, open_artifact  # noqa: E402
from runtimes.api import Message, Usage  # noqa: E402
from runtimes.loop.loop import TokenLoop  # noqa: E402
from runtimes.loop.tokens import NewToken, TokenRequest, TokensDone  # noqa: E402
from runtimes.registry import ENGINES  # noqa: E402
from runtimes.text.tokenizer import Tokenizer  # noqa: E402

LIGHTHOUSE = (
    "The old lighthouse at Cape Wren was built in 1871 by a crew of forty men. It is thirty metres high, and its lamp "
    "could be seen from twenty miles away. In 1954 the last keeper, Thomas Avery, left the island, and the light has "
    "been run by a machine ever since. Every summer some two thousand visitors climb its 154 steps. The keeper's house "
    "is a small museum today, with his log books, his telescope and a model of the first lamp."
)
LETTER = (
    "Dear Ms Alvarez, thank you for your order of 12 March. The two oak shelves and the reading lamp left our "
    "warehouse in Leeds yesterday and will reach you by Friday. The blue armchair is not in stock before April 20. If "
    "you do not want to wait, please choose another colour, or let us know and we will return the 310 pounds that you "
    "paid for it. Kind regards, Daniel Moss, Customer Service"
)
RECIPE = (
    "Peel two onions and cut them into thin rings. Heat three spoons of oil in a wide pan and fry the rings for ten "
    "minutes. Add 200 grams of rice and stir for two minutes. Pour in half a litre of hot stock, cover the pan, and "
    "cook everything for eighteen minutes on a low heat. Stir in a handful of parsley and serve at once."
)
CODE = """def average(values):
    total = 0
    for value in values:
        total = total + value
    return total / len(values)


def largest(values):
    best = values[0]
    for value in values:
        if value > best:
            best = value
    return best
"""
MINUTES = (
    "Present: Ada Kovacs, Ben Ortiz, Carla Weiss. Ben reported that the bridge was painted in May and that the bill "
    "was 4,200 pounds, 300 less than planned. Carla asked for new lamps at both ends of the bridge. It was agreed to "
    "ask three firms for a price before the end of June. The next meeting is on 9 July at seven in the town hall."
)
TABLE = """name,city,age
Maria Lindqvist,Uppsala,41
Tom Becker,Leipzig,29
Aiko Tanaka,Osaka,35
Luis Herrera,Sevilla,52
Emma Clarke,York,38
"""
MISSPELT = LIGHTHOUSE.replace("lamp", "lamb").replace("visitors", "visiters")
REPEATING = {
    "edit a year": f"Repeat this text, but write the year 1954 as 1956:\n\n{LIGHTHOUSE}",
    "correct spelling": f"Correct the spelling of this text:\n\n{MISSPELT}",
    "edit a name": f"Write this letter again, to Mr Brown instead of Ms Alvarez:\n\n{LETTER}",
    "copy": f"Copy this letter word for word:\n\n{LETTER}",
    "edit code": f"Rename the function `largest` to `maximum` in this code, and show all of it:\n\n{CODE}",
    "extract": f"List each sentence of this text that contains a number:\n\n{RECIPE}",
    "summarise": f"Summarise this text, in its own words where you can:\n\n{LIGHTHOUSE}",
    "list steps": f"Write this recipe as a numbered list:\n\n{RECIPE}",
    "edit a date": f"Write these minutes again, with the next meeting on 16 July:\n\n{MINUTES}",
    "quote": f"Quote the sentences of these minutes that are about money or lamps:\n\n{MINUTES}",
    "edit a table": f"Repeat this table, but write Goteborg in the place of Uppsala:\n\n{TABLE}",
    "to sentences": f"Write a sentence about each person in this table, with city and age:\n\n{TABLE}",
}
FREE = {
    "tell a story": "Write a story about a dog that learns to sail.",
    "explain": "Why is the sky blue?",
    "advise": "How can I sleep better?",
    "write a letter": "Write a letter to a friend about your holiday in the mountains.",
    "a poem": "Write a poem about the sea in winter.",
    "list": "List ten things to take on a hike, and say why.",
    "compare": "What is the difference between a frog and a toad?",
    "a function": "Write a Python function that says whether a word is a palindrome.",
}
RUN = 4  # tokens in a row that are the prompt's, too, are no chance
REPEATS = 0.5  # of an answer, from which on it repeats its prompt


@dataclass(frozen=True)
class Answer:
    """One answer's tokens, speed and counts."""

    ids: Sequence[int]
    decode_tokens_per_s: float
    usage: Usage


@dataclass(frozen=True)
class Row:
    """What all rounds of one prompt gave."""

    task: str
    repeated: float  # of the plain answer's tokens, those that end RUN tokens which the prompt has, too
    plain_tokens_per_s: float
    ratio: float
    accepted: int
    proposed: int
    same_tokens: int | None  # how many tokens are the same before the first that is not; None: all


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=3, show_default=True)
@click.option("--max-new-tokens", default=160, show_default=True)
@click.option("--threads", type=int, show_default="all cores")
@click.option("--only", multiple=True, type=click.Choice([*REPEATING, *FREE]), show_default="all prompts")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the rows to this file, too.")
def main(
    folders: tuple[Path, ...],
    rounds: int,
    max_new_tokens: int,
    threads: int | None,
    only: tuple[str, ...],
    out: Path | None,
) -> None:
    """Measure all FOLDERS and print a table for each."""
    tasks = {name: text for name, text in (REPEATING | FREE).items() if not only or name in only}
    results: dict[str, list[dict[str, object]]] = {}
    for folder in folders:
        artifact = open_artifact(folder)
        engine = ENGINES[artifact.manifest.format](artifact, threads)
        table = [*measure(artifact, TokenLoop(engine), tasks, rounds, max_new_tokens)]
        report(folder.name, table)
        results[folder.name] = [vars(row) for row in table]
        engine.close()
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(artifact: Artifact, loop: TokenLoop, tasks: dict[str, str], rounds: int, most: int) -> Iterator[Row]:
    """A row for each task."""
    tokenizer = Tokenizer(artifact.folder)
    for task, text in tasks.items():
        ids = tokenizer.encode_chat([Message("user", text)])
        request = TokenRequest(ids=ids, max_new_tokens=most, stop_ids=artifact.manifest.tokens.stop)
        fast = TokenRequest(ids=ids, max_new_tokens=most, stop_ids=artifact.manifest.tokens.stop, speculate=True)
        pairs = [(answer(loop, request), answer(loop, fast)) for _ in range(rounds)]
        plain, guessed = pairs[0]
        yield Row(
            task=task,
            repeated=repeated_share(ids, plain.ids),
            plain_tokens_per_s=statistics.median(each.decode_tokens_per_s for each, _ in pairs),
            ratio=statistics.median(second.decode_tokens_per_s / first.decode_tokens_per_s for first, second in pairs),
            accepted=guessed.usage.accepted,
            proposed=guessed.usage.proposed,
            same_tokens=parting(plain.ids, guessed.ids),
        )


def answer(loop: TokenLoop, request: TokenRequest) -> Answer:
    """One answer. Its speed is that of the tokens after the first."""
    *tokens, done = loop.stream(request)
    assert isinstance(done, TokensDone) and done.error is None, done
    new = [token for token in tokens if isinstance(token, NewToken)]
    first_s, total_s = new[0].at_s, done.total_s
    assert first_s is not None and total_s is not None
    # To the end, because an answer's last tokens may come from one forward, at the same time.
    return Answer([token.id for token in new], len(new) / (total_s - first_s), done.usage)


def repeated_share(prompt: Sequence[int], answer: Sequence[int]) -> float:
    """See Row.repeated."""
    runs = {tuple(prompt[end - RUN : end]) for end in range(RUN, len(prompt) + 1)}
    return sum(tuple(answer[end - RUN : end]) in runs for end in range(RUN, len(answer) + 1)) / max(1, len(answer))


def parting(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Where two answers part; None where they are the same."""
    if list(one) == list(other):
        return None
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def report(name: str, rows: Sequence[Row]) -> None:
    """The table of one artifact, and the mean ratio of each kind of prompt."""
    click.echo(f"\n{name}\n\n| prompt | of the answer in the prompt | plain | ratio | guesses right | same tokens |")
    click.echo("|---|---:|---:|---:|---:|---|")
    for row in rows:
        same = "all" if row.same_tokens is None else f"the first {row.same_tokens}"
        click.echo(
            f"| {row.task} | {row.repeated:.0%} | {row.plain_tokens_per_s:.1f} tokens/s | {row.ratio:.2f} "
            f"| {row.accepted} of {row.proposed} | {same} |"
        )
    kinds: dict[str, Callable[[Row], bool]] = {
        "asks for text like its own": lambda row: row.task in REPEATING,
        "is repeated by half of the answer or more": lambda row: row.repeated >= REPEATS,
        "asks for other text": lambda row: row.task in FREE,
    }
    for kind, belongs in kinds.items():
        ratios = [row.ratio for row in rows if belongs(row)]
        alike = [row.same_tokens is None for row in rows if belongs(row)]
        if ratios:
            logarithms = np.log(ratios)
            picks = np.random.default_rng(SEED).integers(len(ratios), size=(RESAMPLES, len(ratios)))
            low, high = interval(np.exp(logarithms[picks].mean(axis=1)))
            click.echo(
                f"\n{len(ratios)} prompts, each {kind}: {np.exp(logarithms.mean()):.2f} ({low:.2f} to {high:.2f}) "
                f"times plain decode, the lowest {min(ratios):.2f}; the same tokens in {sum(alike)} of {len(alike)}"
            )


if __name__ == "__main__":
    main()
