"""Structured output: which ids may come next, so that an answer matches a JSON schema, a regular expression or a Lark
grammar. The parsing is llguidance's; it runs beside the loop, so it is the same for every engine.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from export.artifact import Artifact
from export.strict import read_json
from runtimes.errors import EngineError, RequestError, UnsupportedError
from runtimes.loop.tokens import Grammar
from runtimes.text.token_bytes import control_names

if TYPE_CHECKING:
    import llguidance

    from runtimes.engines.engine import Logits

# Nothing but the document: a small model may otherwise put blanks between its parts until the context is full.
JSON_OPTIONS: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_SILENT = 0


def can_constrain() -> bool:
    """Whether llguidance is installed here."""
    return find_spec("llguidance") is not None


class Grammars:
    """Compiles grammars for one artifact's tokenizer, which is read for the first of them."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact

    def compile(self, grammar: Grammar) -> Matcher:
        """Raises RequestError for a grammar that is wrong, UnsupportedError where llguidance is missing."""
        if not can_constrain():
            raise UnsupportedError(
                f"{grammar.kind} needs llguidance, which is not installed: pip install 'phi-edge[grammar]'; or leave "
                f"{grammar.kind} out"
            )
        import llguidance

        matcher = llguidance.LLMatcher(self._tokenizer, _source(grammar), log_level=_SILENT)
        if matcher.is_error():
            raise RequestError(f"{grammar.kind} cannot be used: {_first_line(matcher.get_error())}; correct it")
        return Matcher(matcher, self._artifact.manifest.model.vocab_size)

    @functools.cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        import llguidance

        manifest = self._artifact.manifest
        content = read_json(self._artifact.path("tokenizer.json"), EngineError, "export it again")
        control = control_names(content)
        for token in content.get("added_tokens", ()):
            # What is no text for us (runtimes.text.token_bytes) is no text in a document either.
            token["special"] = token["content"] in control
        try:
            return llguidance.LLTokenizer(
                json.dumps(content), n_vocab=manifest.model.vocab_size, eos_token=list(manifest.tokens.stop)
            )
        except Exception as error:  # the library raises nothing narrower
            raise EngineError(f"llguidance cannot read this artifact's tokenizer.json: {error}") from error


class Matcher:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def mask(self, logits: Logits) -> Logits:
        """A copy in which every id that may not come next has minus infinity; a stop id may, at the document's end."""
        import numpy as np

        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        return np.where(bits[: self._vocab_size], logits, np.float32(-np.inf))

    def take(self, id: int) -> None:
        """This id is part of the answer now, or ends it. Raises EngineError where the grammar grows too complex."""
        if not self._matcher.consume_token(id):
            raise EngineError(f"the answer cannot follow its grammar: {_first_line(self._matcher.get_error())}")

    def forced(self) -> Sequence[int]:
        """The ids that must come next whatever the model says: often a key of a JSON object. They are taken."""
        ids = self._matcher.compute_ff_tokens()
        if ids and not self._matcher.consume_tokens(ids):
            raise EngineError(f"the answer cannot follow its grammar: {_first_line(self._matcher.get_error())}")
        return ids

    @property
    def complete(self) -> bool:
        """Whether the document has ended, so that nothing but a stop id may follow."""
        return bool(self._matcher.is_stopped())


def _source(grammar: Grammar) -> str:
    import llguidance

    if grammar.kind == "json_schema":
        try:
            return llguidance.LLMatcher.grammar_from_json_schema(grammar.text, defaults=JSON_OPTIONS)  # type: ignore[arg-type]
        except ValueError as error:
            raise RequestError(f"json_schema cannot be used: {_first_line(str(error))}; correct it") from error
    if grammar.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(grammar.text)
    return llguidance.LLMatcher.grammar_from_lark(grammar.text)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
