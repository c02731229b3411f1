"""Questions with known answers: a JSON line each, {"question": ..., "answers": [...], "kind": ...}."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import OptionError
from export.texts.lines import read_lines


@dataclass(frozen=True, kw_only=True)
class Question:
    """Asked as a user's message; any of the answers is right."""

    question: str
    answers: Sequence[str]
    kind: str

    def is_right(self, said: str, *, more: bool = False) -> bool:
        """Whether one of the answers occurs in `said` as a whole word, whatever its capitals.

        With `more` text to come, what `said` ends with is not yet a whole word.
        """
        end = r"(?=\W)" if more else r"(?!\w)"
        return any(re.search(rf"(?<!\w){re.escape(each)}{end}", said, re.IGNORECASE) for each in self.answers)


def read_questions(path: Path) -> list[Question]:
    """All questions of a file. Raises OptionError with the line and the key that is wrong."""
    questions = [_question(content, where) for where, content in read_lines(path)]
    if not questions:
        raise OptionError(f'{path}: has no questions; give a line such as {{"question": "...", "answers": ["..."]}}')
    return questions


def _question(content: dict[str, Any], where: str) -> Question:
    for key in content:
        if key not in ("question", "answers", "kind", "source"):
            raise OptionError(f"{where}: unknown key {key!r}; known: question, answers, kind, source")
    question, answers, kind = content.get("question"), content.get("answers"), content.get("kind", "other")
    if not isinstance(question, str) or not question.strip():
        raise OptionError(f"{where}: question is {question!r:.60}; give a text that is not empty")
    if not isinstance(answers, list) or not answers or not all(isinstance(each, str) and each for each in answers):
        raise OptionError(f"{where}: answers is {answers!r:.60}; give a list of texts that are not empty")
    if not isinstance(kind, str):
        raise OptionError(f"{where}: kind is {kind!r:.60}; give a text, or leave it out")
    return Question(question=question, answers=tuple(answers), kind=kind)
