"""A conversation on a terminal: each turn goes through the chat template, the KV cache is kept between turns.

A conversation that reaches the end of the context goes on: its oldest turns are dropped, which is reported, and the
opening (the system message) is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Generator, Sequence

import click

from runtimes.api import DoneEvent, Event, GenerateRequest, Message, Runtime
from runtimes.errors import ContextFullError, RequestError

COMMANDS = {
    "/help": "this list",
    "/clear": "forget the conversation so far; the system message stays",
    "/bye": "end the conversation, as Ctrl-D, an empty line, exit and quit do",
}
ENDINGS = {"", "/bye", "/exit", "/quit", "exit", "quit"}
# Of the context, what is left free for an answer.
ANSWER_SHARE = 1 / 4


def chat(runtime: Runtime, opening: Sequence[Message], template: GenerateRequest, context_tokens: int) -> None:
    """Read a line, answer it, until the input ends. Ctrl-C ends an answer, or the conversation between two.

    `template` gives everything but messages and session.
    """
    click.echo("/help lists the commands; Ctrl-C ends an answer, /bye or Ctrl-D the conversation.", err=True)
    conversation = Conversation(runtime, opening, template, context_tokens)
    while True:
        try:
            line = click.prompt(">", prompt_suffix=" ", default="", show_default=False, err=True)
        except click.Abort:
            click.echo(err=True)
            return
        word = line.strip().lower()
        if word in ENDINGS:
            return
        if word == "/clear":
            conversation.clear()
            click.echo("The conversation starts anew.", err=True)
        elif re.fullmatch(r"/[a-z?]+", word):
            if word not in ("/help", "/?"):
                click.echo(f"Error: unknown command {word}; these are known:", err=True)
            click.echo("\n".join(f"  {name:<8}{text}" for name, text in COMMANDS.items()), err=True)
        else:
            try:
                conversation.turn(line)
            except RequestError as error:
                # The turn is refused, the conversation so far is still good.
                click.echo(f"Error: {error}", err=True)


class Conversation:
    """The turns so far, and what is done when they fill the context."""

    def __init__(
        self, runtime: Runtime, opening: Sequence[Message], template: GenerateRequest, context_tokens: int
    ) -> None:
        self._runtime, self._opening, self._template = runtime, list(opening), template
        self._context_tokens = context_tokens
        self._turns: list[Message] = []  # user and assistant in turn
        self._used_tokens = 0  # by the last prompt and its answer

    def clear(self) -> None:
        """Forget all turns."""
        self._turns, self._used_tokens = [], 0

    def turn(self, line: str) -> None:
        """Answer one line and remember both. Raises RequestError, and then remembers neither."""
        message = Message("user", line)
        kept = self._fitting(message)
        while True:
            try:
                events = self._ask([*self._opening, *kept, message])
            except ContextFullError:
                if not kept:
                    raise  # this message alone is too long
                kept = kept[2:]
                continue
            _report(len(self._turns) - len(kept), bool(self._opening))
            answer, self._used_tokens = _show(events)
            self._turns = [*kept, message, Message("assistant", answer)]
            return

    def _fitting(self, message: Message) -> list[Message]:
        """The turns without the oldest, so that an answer has room. Lengths are estimated from the last turn's tokens;
        what is estimated too short, the runtime refuses."""
        room = self._context_tokens - min(self._template.max_new_tokens, int(self._context_tokens * ANSWER_SHARE))
        kept = list(self._turns)
        tokens_per_char = self._used_tokens / max(1, _chars([*self._opening, *kept]))
        while kept and tokens_per_char * _chars([*self._opening, *kept, message]) > room:
            kept = kept[2:]
        return kept

    def _ask(self, messages: list[Message]) -> Generator[Event, None, None]:
        """The answer to come. Raises RequestError now, where the messages are refused."""
        return self._runtime.generate(dataclasses.replace(self._template, messages=messages, session="chat"))


def _show(answer: Generator[Event, None, None]) -> tuple[str, int]:
    """The answer's text, shown as it comes, and the tokens of prompt and answer."""
    text, used = "", 0
    with contextlib.closing(answer) as events:
        try:
            for event in events:
                text += event.text
                click.echo(event.text, nl=False)
                if isinstance(event, DoneEvent):
                    used = event.usage.prompt + event.usage.completion
                    if event.finish not in ("eos", "stop"):
                        click.echo(f" [{event.error or event.finish}]", nl=False, err=True)
        except KeyboardInterrupt:
            click.echo(" [cancelled]", nl=False, err=True)
    click.echo()
    return text, used


def _chars(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)


def _report(dropped: int, has_opening: bool) -> None:
    if dropped:
        turns = f"{dropped // 2} oldest turns were" if dropped > 2 else "oldest turn was"
        kept = "; the system message is kept" if has_opening else ""
        click.echo(f"[the conversation is full: its {turns} dropped{kept}; /clear starts anew]", err=True)
