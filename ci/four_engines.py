"""The same prompts through four engines, token by token: our two, and the stock one of each format.

    python ci/four_engines.py [--prompts 200] [--write]

The tiny model's int4 artifacts answer held-out prompts greedily. Within a format every token must be equal, as the
weights are. The two formats quantise differently, so two logits may change places: where the answers differ, the gap
between the two tokens is computed with each artifact's own dequantised weights. An engine that chose below its own
weights' best must have done so by less than a bound that was measured on other text. Exit code 1 if one is not. About a
minute on two cores; --write puts the table into docs/fidelity.md. tests/test_ci_four_engines.py runs a sample.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Before anything imports torch: under ExecuTorch's threads, OpenMP's own make a call a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from ci.stock_engines import genai_answers, runner_answers
from ci.tiny.text import Message, chat_text
from export.artifact import Artifact
from export.checkpoint.find import TINY
from export.checkpoint.open import open_checkpoint
from export.pipeline import export_model
from export.request import ExportRequest
from export.tokenizer.limited import read_tokenizer
from export.verify.reference import Reference, open_reference
from export.weights.dequantize import read_weights
from runtimes.loop.tokens import NewToken, TokenRequest
from runtimes.registry import ENGINES, open_tokens
from runtimes.text.tokenizer import Tokenizer

PAGE = Path(__file__).parent.parent / "docs" / "fidelity.md"
BEGIN, END = "<!-- engines: python ci/four_engines.py --write -->", "<!-- end of engines -->"
PROMPTS, HELD_OUT = 200, 360  # asked, and there are
ANSWER_TOKENS = 64  # more than any answer of the tiny model's has
WINDOW_TOKENS = 512
ONNX, EXECUTORCH = "onnx", "executorch"


@dataclass(frozen=True)
class Bound:
    """How far the two artifacts are apart on other held-out text."""

    positions: int
    max_difference: float  # the largest |logit - the other's|, over the whole vocabulary
    largest_gap: float  # between the two tokens, at a place where the artifacts' best tokens differed


@dataclass(frozen=True)
class Parting:
    """Where the answers of the two formats to one prompt part. A gap is the logit of that artifact's own choice less
    that of the other's, under its own weights: below 0, its engine's arithmetic chose between near logits."""

    prompt: int
    token: int
    chosen: Mapping[str, str]
    gaps: Mapping[str, float]

    @property
    def shortfall(self) -> float:
        """How far an artifact's choice lies below the other's under its own weights, the larger of the two; 0 where
        each chose its own best, so that the quantisations differ and no engine erred. NaN where either gap is."""
        return float(np.maximum(0.0, -np.array(list(self.gaps.values()))).max())


@dataclass(frozen=True)
class Comparison:
    """All answers, and what follows from them."""

    answers: Mapping[str, Sequence[Sequence[int]]]  # engine -> prompt -> ids, the stop id last
    partings: Sequence[Parting]
    bound: Bound

    def equal(self, left: str, right: str) -> int:
        """The number of prompts with the same tokens from both engines."""
        return sum(list(a) == list(b) for a, b in zip(self.answers[left], self.answers[right], strict=True))

    @property
    def failures(self) -> list[str]:
        """What is not as it should be, each in one line."""
        prompts = len(self.answers[ONNX])
        missed = [
            f"{left} and {right} give the same tokens for {self.equal(left, right)} of {prompts} prompts"
            for left, right in ((ONNX, "genai"), (EXECUTORCH, "runner"))
            if self.equal(left, right) != prompts
        ]
        return missed + [
            f"prompt {parting.prompt}: an engine chose {parting.shortfall:.3f} below its own weights' best"
            for parting in self.partings
            if not parting.shortfall <= self.bound.largest_gap
        ]

    def markdown(self) -> str:
        prompts, bound = len(self.answers[ONNX]), self.bound
        lines = ["| prompts | engines | the same tokens | tokens |", "|---|---|---|---|"]
        for names, left, right in (
            ("ours, ONNX - stock onnxruntime-genai", ONNX, "genai"),
            ("ours, ExecuTorch - stock text runner", EXECUTORCH, "runner"),
            ("ours, ONNX - ours, ExecuTorch", ONNX, EXECUTORCH),
        ):
            tokens = sum(map(len, self.answers[left]))
            lines.append(f"| {prompts} | {names} | {self.equal(left, right)} | {tokens} |")
        largest = max((parting.shortfall for parting in self.partings), default=0.0)
        lines += [
            "",
            f"Bound: {bound.largest_gap:.2f}. It is the largest gap at which the two artifacts chose differently over "
            f"the {bound.positions} positions of `held_out.txt`, where their logits differed by up to "
            f"{bound.max_difference:.2f}. No engine chose more than {largest:.2f} below its own weights' best.",
            "",
            "| prompt | at token | ONNX chose | ExecuTorch chose | gap under ONNX's weights | under ExecuTorch's |",
            "|---|---|---|---|---|---|",
        ]
        for parting in self.partings:
            lines.append(
                f"| {parting.prompt} | {parting.token} | `{parting.chosen[ONNX]}` | `{parting.chosen[EXECUTORCH]}` "
                f"| {parting.gaps[ONNX]:+.3f} | {parting.gaps[EXECUTORCH]:+.3f} |"
            )
        return "\n".join(lines)


def held_out_prompts(count: int) -> list[str]:
    """Dialogues and single questions that the tiny model was not trained on, evenly out of all 360, as chat text."""
    chats = [json.loads(line)["messages"] for line in (TINY / "held_out_chats.jsonl").read_text("utf-8").splitlines()]
    questions = [json.loads(line)["question"] for line in (TINY / "held_out.jsonl").read_text("utf-8").splitlines()]
    prompts = [tuple(Message(**message) for message in chat) for chat in chats]
    prompts += [(Message("user", question),) for question in questions]
    assert len(prompts) == HELD_OUT
    return [chat_text(prompts[place * len(prompts) // count], open_turn=True) for place in range(count)]


def compare(artifacts: Mapping[str, Artifact], prompts: Sequence[str], *, text_tokens: int | None = None) -> Comparison:
    """Run all four engines over `artifacts`, one for each format. `text_tokens` shortens the text for the bound."""
    genai = genai_answers(artifacts[ONNX].folder, prompts, ANSWER_TOKENS)
    ids = [answer.prompt for answer in genai]
    spelling = Spelling(artifacts[EXECUTORCH])
    pieces = runner_answers(artifacts[EXECUTORCH].folder, prompts, ANSWER_TOKENS)
    answers = {
        **{name: our_answers(artifact, ids) for name, artifact in artifacts.items()},
        "genai": [answer.tokens for answer in genai],
        "runner": [[spelling.id(piece) for piece in answer] for answer in pieces],
    }
    partings: list[Parting] = []
    if places := first_differences(answers):
        references = {
            name: open_reference(
                open_checkpoint("tiny"), dict(read_weights(artifact))
            )  # in memory: each is asked often
            for name, artifact in artifacts.items()
        }
        partings = [explain(number, place, ids, answers, references, spelling) for number, place in places]
    return Comparison(answers, partings, measure_bound(artifacts, text_tokens))


class Spelling:
    """The text of each id as the stock runner prints it, control tokens too; no two ids have the same."""

    def __init__(self, artifact: Artifact) -> None:
        tokenizer = Tokenizer(artifact.folder)
        content = json.loads(artifact.path("tokenizer.json").read_text("utf-8"))
        self.texts = {token["id"]: token["content"] for token in content["added_tokens"]}
        for id in content["model"]["vocab"].values():
            self.texts.setdefault(id, tokenizer.bytes[id].decode("utf-8", "replace"))
        self._ids: dict[str, int] = {text: id for id, text in self.texts.items()}

    def id(self, piece: str) -> int:
        return self._ids[piece]


def our_answers(artifact: Artifact, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Greedy ids from our own runtime, the stop id last."""
    source, answers = open_tokens(artifact), []
    for ids in prompts:
        tokens: list[int] = []
        request = TokenRequest(ids=ids, max_new_tokens=ANSWER_TOKENS, stop_ids=artifact.manifest.tokens.stop)
        for record in source.stream(request):
            if isinstance(record, NewToken):
                tokens.append(record.id)
            elif record.stop_id is not None:
                tokens.append(record.stop_id)
        answers.append(tokens)
    source.close()
    return answers


def first_differences(answers: Mapping[str, Sequence[Sequence[int]]]) -> list[tuple[int, int]]:
    """Prompt and place, where the two formats' answers differ. An answer ends with a stop id or at its full length, so
    none is the beginning of another."""
    found: list[tuple[int, int]] = []
    for number, pair in enumerate(zip(answers[ONNX], answers[EXECUTORCH], strict=True)):
        found += [(number, place) for place, (a, b) in enumerate(zip(*pair, strict=False)) if a != b][:1]
    return found


def explain(
    number: int,
    place: int,
    prompts: Sequence[Sequence[int]],
    answers: Mapping[str, Sequence[Sequence[int]]],
    references: Mapping[str, Reference],
    spelling: Spelling,
) -> Parting:
    """The two tokens at a first difference, under each artifact's own weights."""
    chosen = {name: answers[name][number][place] for name in (ONNX, EXECUTORCH)}
    before = [*prompts[number], *answers[ONNX][number][:place]]
    gaps = {}
    for name, other in ((ONNX, EXECUTORCH), (EXECUTORCH, ONNX)):
        row = references[name].logits(before, [len(before)])[0]
        gaps[name] = float(row[chosen[name]] - row[chosen[other]])
    return Parting(number, place, {name: spelling.texts[id] for name, id in chosen.items()}, gaps)


def measure_bound(artifacts: Mapping[str, Artifact], text_tokens: int | None) -> Bound:
    """Both artifacts over held_out.txt, token by token through their engines, in windows of 512 tokens."""
    tokenizer = read_tokenizer(artifacts[ONNX].path("tokenizer.json"))
    ids = tokenizer.encode((TINY / "held_out.txt").read_text("utf-8"), add_special_tokens=True)[:text_tokens]
    engines = [ENGINES[artifact.manifest.format](artifact, None) for artifact in artifacts.values()]
    difference = gap = 0.0
    for number, id in enumerate(ids):
        left, right = (np.array(engine.forward([id], number % WINDOW_TOKENS)) for engine in engines)
        difference = max(difference, float(np.abs(left - right).max()))
        a, b = int(left.argmax()), int(right.argmax())
        gap = max(gap, float(left[a] - left[b]), float(right[b] - right[a]))
    for engine in engines:
        engine.close()
    return Bound(len(ids), difference, gap)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="how many of the held-out prompts")
    parser.add_argument("--write", action="store_true", help="write the table into docs/fidelity.md")
    arguments = parser.parse_args()
    if not 1 <= arguments.prompts <= HELD_OUT:
        parser.error(f"--prompts is {arguments.prompts}; allowed: 1 to {HELD_OUT}")
    with tempfile.TemporaryDirectory() as folder:
        artifacts = {
            format: export_model(ExportRequest(checkpoint="tiny", out=Path(folder) / format, format=format))
            for format in (ONNX, EXECUTORCH)
        }
        compared = compare(artifacts, held_out_prompts(arguments.prompts))
    print(compared.markdown())
    for failure in compared.failures:
        print(f"missed: {failure}")
    if arguments.write:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n{compared.markdown()}\n\n{END}{after}", encoding="utf-8")
    return 1 if compared.failures else 0


if __name__ == "__main__":
    sys.exit(main())
