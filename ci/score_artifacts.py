"""Score artifacts of the tiny model as they run: `python ci/score_artifacts.py ARTIFACT... [--out docs/quality.md]`.

Exact match on the held-out questions by greedy decoding, and perplexity of the held-out text fed token by token:
through the engines, with their 8-bit activations, not through torch.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.progress import track

from export.artifact import Artifact, open_artifact
from export.tokenizer.limited import read_tokenizer
from runtimes.api import GenerateRequest, Message
from runtimes.registry import ENGINES, open_runtime

TINY = Path(__file__).parent.parent / "export" / "tiny"
WINDOW_TOKENS = 512


@dataclass(frozen=True)
class Score:
    """right and asked per category, and the perplexity per token."""

    right: dict[str, int]
    asked: dict[str, int]
    perplexity: float

    def share(self, category: str) -> str:
        return f"{self.right[category] / self.asked[category]:.1%}"

    @property
    def total(self) -> str:
        right, asked = sum(self.right.values()), sum(self.asked.values())
        return f"**{right / asked:.1%}** ({right}/{asked})"


@click.command()
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Rewrite the table between the marks in this file.")
def main(artifacts: tuple[Path, ...], out: Path | None) -> None:
    """Print one table for all ARTIFACTS, which are exports of `tiny`."""
    opened = [open_artifact(path) for path in artifacts]
    table = as_table([(artifact, score(artifact)) for artifact in opened])
    click.echo(table)
    if out is not None:
        begin, end = "<!-- scores: ci/score_artifacts.py -->\n", "<!-- /scores -->"
        before, _, rest = out.read_text(encoding="utf-8").partition(begin)
        out.write_text(before + begin + table + "\n" + end + rest.partition(end)[2], encoding="utf-8")


def score(artifact: Artifact) -> Score:
    """Both figures of one artifact."""
    right: dict[str, int] = defaultdict(int)
    asked: dict[str, int] = defaultdict(int)
    runtime = open_runtime(artifact)
    rows = [json.loads(line) for line in (TINY / "held_out.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in track(rows, description=f"{artifact.manifest.format} {artifact.manifest.scheme.name}", transient=True):
        request = GenerateRequest(messages=[Message("user", row["question"])], max_new_tokens=64)
        answer = "".join(event.text for event in runtime.generate(request))
        asked[row["category"]] += 1
        right[row["category"]] += answer == row["answer"]
    runtime.close()
    return Score(dict(right), dict(asked), perplexity(artifact))


def perplexity(artifact: Artifact) -> float:
    """Of held_out.txt, in windows of 512 tokens; every token but a window's first is predicted."""
    tokenizer = read_tokenizer(artifact.path("tokenizer.json"))
    ids = tokenizer.encode((TINY / "held_out.txt").read_text("utf-8"), add_special_tokens=True)
    engine = ENGINES[artifact.manifest.format](artifact, None)
    loss, predicted = 0.0, 0
    for start in range(0, len(ids) - 1, WINDOW_TOKENS):
        window = ids[start : start + WINDOW_TOKENS]
        for position, following in enumerate(window[1:]):
            logits = engine.forward([window[position]], position).astype(np.float64)
            peak = logits.max()
            loss += peak + math.log(np.exp(logits - peak).sum()) - logits[following]
            predicted += 1
    engine.close()
    return math.exp(loss / predicted)


def as_table(scores: list[tuple[Artifact, Score]]) -> str:
    """GitHub markdown, one column for each artifact."""
    heads = [f"{a.manifest.format}, {a.manifest.scheme.name}" for a, _ in scores]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(scores)]
    for category in scores[0][1].asked:
        lines.append(f"| exact match, {category} | " + " | ".join(s.share(category) for _, s in scores) + " |")
    lines.append("| exact match, all | " + " | ".join(s.total for _, s in scores) + " |")
    lines.append("| perplexity | " + " | ".join(f"{s.perplexity:.3f}" for _, s in scores) + " |")
    weights = [f"{sum(f.bytes for f in a.manifest.files.values()) / 1e6:.2f} MB" for a, _ in scores]
    lines.append("| artifact | " + " | ".join(weights) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
