"""A conversation that goes on when it has filled the context: its oldest turns are dropped, its opening is kept."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Sequence

from runtimes.api import AnyMessage, Event, GenerateRequest, Message
from runtimes.text.messages import as_messages
from runtimes.text.runtime import DEFAULTS, TextRuntime

# Of the context, what an answer is left at most where max_new_tokens asks for more.
ANSWER_SHARE = 1 / 4


class Conversation:
    """The turns so far. `dropped` is how many messages the last `ask` left out for good, to make room."""

    def __init__(
        self, runtime: TextRuntime, opening: Sequence[AnyMessage] = (), settings: GenerateRequest = DEFAULTS
    ) -> None:
        """`opening` is kept for ever, as a system message should be. `settings` has everything but the messages; its
        session keeps the KV cache between turns."""
        self._runtime = runtime
        self._opening = as_messages(opening) if opening else []
        self._settings = dataclasses.replace(settings, session=settings.session or "conversation")
        self._turns: list[Message] = []
        self.dropped = 0

    @property
    def messages(self) -> list[Message]:
        """The opening and the turns that are still remembered."""
        return [*self._opening, *self._turns]

    def clear(self) -> None:
        """Forget all turns."""
        self._turns, self.dropped = [], 0

    def ask(self, text: str) -> Generator[Event, None, None]:
        """The answer to one more message of the user. Question and answer are remembered when the iterator ends, also
        where it is closed early. Raises RequestError at the call, and then remembers neither."""
        question = Message("user", text)
        kept = self._fitting(question)
        events = self._runtime.generate(self._request([*kept, question]))
        self.dropped = len(self._turns) - len(kept)
        self._turns = kept
        return self._remembered(question, events)

    def _remembered(self, question: Message, events: Generator[Event, None, None]) -> Generator[Event, None, None]:
        text = ""
        try:
            with contextlib.closing(events):
                for event in events:
                    text += event.text
                    yield event
        finally:
            self._turns += [question, Message("assistant", text)]

    def _fitting(self, question: Message) -> list[Message]:
        """The turns without the oldest, so that an answer has room."""
        context = self._runtime.manifest.context_tokens
        room = context - min(self._settings.max_new_tokens, int(context * ANSWER_SHARE))
        kept = list(self._turns)
        while kept and self._runtime.count_tokens(self._request([*kept, question])) > room:
            del kept[:2]
        return kept

    def _request(self, turns: Sequence[Message]) -> GenerateRequest:
        return dataclasses.replace(self._settings, messages=[*self._opening, *turns])
