"""Questions to a real model: some of those that `phi-edge score` asks."""

from __future__ import annotations

from pathlib import Path

import export.texts
from export.verify.score.questions import read_questions


def twenty_questions() -> list[str]:
    """Evenly from all of them."""
    found = read_questions(Path(export.texts.__file__).parent / "questions.jsonl")
    return [found[place * len(found) // 20].question for place in range(20)]
