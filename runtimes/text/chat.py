"""A conversation on a terminal (conversation.py): lines in, answers out, and a few commands."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Sequence

import click

<<<<<<< HEAD
from runtimes.api import DoneEvent, Event, GenerateRequest, Message
from runtimes.errors import RequestError
from runtimes.text.conversation import Conversation
from runtimes.text.runtime import TextRuntime
=======
from runtimes.api import DoneEvent, Event, GenerateRequest, Message, Runtime
from runtimes.errors import ContextFullError, RequestError
from runtimes.terminal import harmless, one_line
>>>>>>> 7627bc0 (Command line: one way to write a file, one place that cleans foreign text, exit codes 70 and 130)

COMMANDS = {
    "/help": "this list",
    "/clear": "forget the conversation so far; the system message stays",
    "/bye": "end the conversation, as Ctrl-D, an empty line, exit and quit do",
}
ENDINGS = {"", "/bye", "/exit", "/quit", "exit", "quit"}


def chat(runtime: TextRuntime, opening: Sequence[Message], template: GenerateRequest) -> None:
    """Read a line, answer it, until the input ends. Ctrl-C ends an answer, or the conversation between two.

    `template` gives everything but messages and session.
    """
    click.echo("/help lists the commands; Ctrl-C ends an answer, /bye or Ctrl-D the conversation.", err=True)
    conversation = Conversation(runtime, opening, template)
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
                answer = conversation.ask(line)
            except RequestError as error:
                # The turn is refused, the conversation so far is still good.
<<<<<<< HEAD
                click.echo(f"Error: {error}", err=True)
=======
                click.echo(f"Error: {one_line(str(error))}", err=True)


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
>>>>>>> 7627bc0 (Command line: one way to write a file, one place that cleans foreign text, exit codes 70 and 130)
                continue
            _report(conversation.dropped, bool(opening))
            _show(answer)


def _show(answer: Generator[Event, None, None]) -> None:
    """Show the answer as it comes."""
    with contextlib.closing(answer) as events:
        try:
            for event in events:
<<<<<<< HEAD
                click.echo(event.text, nl=False)
                if isinstance(event, DoneEvent) and event.finish not in ("eos", "stop"):
                    click.echo(f" [{event.error or event.finish}]", nl=False, err=True)
=======
                text += event.text
                click.echo(harmless(event.text), nl=False)
                if isinstance(event, DoneEvent):
                    used = event.usage.prompt + event.usage.completion
                    if event.finish not in ("eos", "stop"):
                        click.echo(f" [{one_line(event.error or event.finish)}]", nl=False, err=True)
>>>>>>> 7627bc0 (Command line: one way to write a file, one place that cleans foreign text, exit codes 70 and 130)
        except KeyboardInterrupt:
            click.echo(" [cancelled]", nl=False, err=True)
    click.echo()


def _report(dropped: int, has_opening: bool) -> None:
    if dropped:
        turns = f"{dropped // 2} oldest turns were" if dropped > 2 else "oldest turn was"
        kept = "; the system message is kept" if has_opening else ""
        click.echo(f"[the conversation is full: its {turns} dropped{kept}; /clear starts anew]", err=True)
