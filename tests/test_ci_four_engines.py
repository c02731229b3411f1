"""A sample of the four-engine table: the stock engines give our tokens, and the formats part at near logits alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ci.four_engines import (
    Bound,
    Comparison,
    Parting,
    Spelling,
    compare,
    explain,
    first_differences,
    held_out_prompts,
)
from export.artifact import open_artifact

PROMPTS = 12  # on x86-64 the formats part at none of these: looking one up takes 15 s


@pytest.fixture(scope="module")
def compared(tiny_onnx: Path, tiny_executorch: Path) -> Comparison:
    artifacts = {"onnx": open_artifact(tiny_onnx), "executorch": open_artifact(tiny_executorch)}
    return compare(artifacts, held_out_prompts(PROMPTS), text_tokens=512)


def test_the_stock_engines_give_our_tokens(compared: Comparison) -> None:
    assert compared.equal("onnx", "genai") == compared.equal("executorch", "runner") == PROMPTS
    assert all(len(answer) > 2 for answers in compared.answers.values() for answer in answers)


def test_the_formats_part_at_near_logits_alone(compared: Comparison) -> None:
    assert compared.failures == []
    assert compared.equal("onnx", "executorch") == PROMPTS - len(compared.partings)
    assert 0 < compared.bound.largest_gap < compared.bound.max_difference


class Row:
    """A reference whose logits are known."""

    name = "a table"

    def __init__(self, *logits: float) -> None:
        self.row = np.array([logits], np.float32)

    def logits(self, ids: Sequence[int], lengths: Sequence[int]) -> npt.NDArray[np.float32]:
        assert (list(ids), list(lengths)) == ([8, 9, 0], [3])
        return self.row


def test_a_parting_is_explained_under_both_artifacts_weights(tiny_executorch: Path) -> None:
    answers = SAME | {"onnx": [[5, 6], [0, 2, 4]], "executorch": [[5, 6], [0, 1, 5, 6]]}
    assert first_differences(answers) == [(1, 1)]
    references = {"onnx": Row(0, 1, 3.5), "executorch": Row(0, 2, 2.5)}
    spelling = Spelling(open_artifact(tiny_executorch))
    parting = explain(1, 1, [[7], [8, 9]], answers, references, spelling)
    assert parting.gaps == {"onnx": 2.5, "executorch": -0.5}
    assert parting.shortfall == 0.5
    assert parting.chosen == {"onnx": "</s>", "executorch": "<s>"}


def test_there_are_200_different_prompts() -> None:
    prompts = held_out_prompts(200)
    assert len(set(prompts)) == 200
    assert all(prompt.endswith("<|assistant|>\n") for prompt in prompts)


SAME: dict[str, list[list[int]]] = {engine: [[5, 6]] for engine in ("onnx", "executorch", "genai", "runner")}


@pytest.mark.parametrize(
    ("answers", "gap", "said"),
    [
        ({}, None, []),
        ({"genai": [[5, 7]]}, None, ["onnx and genai give the same tokens for 0 of 1 prompts"]),
        ({"runner": [[5]]}, None, ["executorch and runner give the same tokens for 0 of 1 prompts"]),
        ({"executorch": [[4]], "runner": [[4]]}, 1.1, []),
        ({"executorch": [[4]], "runner": [[4]]}, -0.9, []),
        ({"executorch": [[4]], "runner": [[4]]}, -1.1, ["prompt 0: an engine chose 1.100 below its own weights' best"]),
        ({"executorch": [[4]], "runner": [[4]]}, nan, ["prompt 0: an engine chose nan below its own weights' best"]),
    ],
)
def test_what_is_missed_is_reported(answers: Mapping[str, list[list[int]]], gap: float | None, said: list[str]) -> None:
    chosen = {"onnx": "a", "executorch": "b"}
    partings = [] if gap is None else [Parting(0, 0, chosen, {"onnx": gap, "executorch": 0.1})]
    assert Comparison(SAME | dict(answers), partings, Bound(512, 2.0, 1.0)).failures == said
