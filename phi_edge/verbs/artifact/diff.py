"""`phi-edge diff`: where two artifacts differ."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phi_edge.errors import Failed
from phi_edge.files import FILE, FOLDER, check_writable, write_text
from phi_edge.terminal import echo
from phi_edge.verb import Text, Verb
from runtimes.terminal import one_line

if TYPE_CHECKING:
    from export.inspect.differences import Difference

MOST_LINES = 40  # of one table, for people; --json has them all


@click.command(
    "diff",
    cls=Verb,
    examples=[
        "phi-edge diff before after",
        'phi-edge diff before after --run "Why is the sky blue?" --json differences.json',
    ],
    extra="export",
)
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER)
@click.option("--run", "prompts", type=Text(), multiple=True, metavar="PROMPT", show_default="neither is run",
              help="Also compare the greedy tokens of both after this prompt. May be repeated.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(1), default=32, metavar="N", help="With --run: at most N tokens.")
@click.option("--json", "out", type=FILE, metavar="FILE", show_default="no file",
              help="Write the differences for a script; - prints them in place of the lines.")  # fmt: skip
@click.option("--fail", is_flag=True, help="Exit code 1 if they differ.")
def diff_command(a: Path, b: Path, prompts: tuple[str, ...], max_new_tokens: int, out: Path | None, fail: bool) -> None:
    """Show where the artifacts A and B differ.

    Compared are the manifests, the settings, the precision of every tensor, the graph's operators and their attributes,
    and the files. Weights are compared by their hash. A and B may also be what other tools exported, except for --run.
    The exit code is 0 whether they differ or not, unless --fail is given.
    """
    from export.artifact import open_artifact
    from export.inspect.describe import describe
    from export.inspect.differences import compare

    if out is not None:
        check_writable(out, [a, b])
    if prompts:
        for folder in (a, b):
            open_artifact(folder)  # what cannot be run is refused before anything is read
    differences = compare(describe(a), describe(b))
    if prompts:
        differences += compare_answers(a, b, prompts, max_new_tokens)
    if out is not None:
        write_text(out, json.dumps([dataclasses.asdict(each) for each in differences], indent=2) + "\n")
    if str(out) != "-":
        echo(lines(differences))
    if differences and fail:
        raise Failed("")


def compare_answers(a: Path, b: Path, prompts: Sequence[str], max_new_tokens: int) -> list[Difference]:
    """Where the greedy answers part, one entry for each prompt that has such a place."""
    from export.inspect.differences import Difference

    found = []
    for prompt, *answers in zip(prompts, answers_of(a, prompts, max_new_tokens), answers_of(b, prompts, max_new_tokens),
                                strict=True):  # fmt: skip
        for at, (ours, theirs) in enumerate(zip_longest(*answers, fillvalue="the end")):
            if ours != theirs:
                found.append(Difference(table="tokens", key=f"{prompt!r}, token {at}", a=ours, b=theirs))
                break
    return found


def answers_of(folder: Path, prompts: Sequence[str], max_new_tokens: int) -> list[list[str]]:
    """For each prompt the greedy tokens, each as its id and its text. One model is in memory at a time."""
    from runtimes.api import GenerateRequest, Message, TokenEvent
    from runtimes.registry import open_runtime

    with contextlib.closing(open_runtime(folder)) as runtime:
        answers = []
        for prompt in prompts:
            request = GenerateRequest(max_new_tokens=max_new_tokens)
            asked = {"messages": [Message("user", prompt)]} if runtime.has_template else {"prompt": prompt}
            events = runtime.generate(dataclasses.replace(request, **asked))
            answers.append([f"{event.id} {event.text!r}" for event in events if isinstance(event, TokenEvent)])
    return answers


def lines(differences: Sequence[Difference]) -> str:
    """A heading for each table, and below it a line for each difference."""
    if not differences:
        return "no differences"
    shown = []
    for table, group in groupby(differences, key=lambda each: each.table):
        entries = list(group)
        shown.append(f"{table}: {len(entries)} {'difference' if len(entries) == 1 else 'differences'}")
        shown += [f"  {one_line(each.line())}" for each in entries[:MOST_LINES]]
        if len(entries) > MOST_LINES:
            shown.append(f"  and {len(entries) - MOST_LINES} more: --json has them")
    return "\n".join(shown)
