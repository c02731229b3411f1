"""Questions to a real model, without its chat template: some of those that `phi-edge score` asks."""

from __future__ import annotations

from pathlib import Path

import export.texts
from export.verify.score.questions import read_questions


def twenty_questions() -> list[str]:
    """Evenly from all of them, as texts of at most 16 tokens that an answer follows."""
    found = read_questions(Path(export.texts.__file__).parent / "questions.jsonl")
    return [f"Question: {found[place * len(found) // 20].question}\nAnswer:" for place in range(20)]
