"""A conversation on a terminal (conversation.py): lines in, answers out, and a few commands."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Sequence

import click

from runtimes.api import DoneEvent, Event, GenerateRequest, Message
from runtimes.errors import RequestError
from runtimes.terminal import harmless, one_line, typed_text
from runtimes.text.conversation import Conversation
from runtimes.text.runtime import TextRuntime

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
            line = typed_text(click.prompt(">", prompt_suffix=" ", default="", show_default=False, err=True))
        except click.Abort:
            click.echo(err=True)
            return
        except ValueError:  # Python's own too, where the locale's encoding is a strict one
            click.echo("Error: this line is not text in UTF-8; set the terminal to UTF-8", err=True)
            continue
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
                click.echo(f"Error: {one_line(str(error))}", err=True)
                continue
            _report(conversation.dropped, bool(opening))
            _show(answer)


def _show(answer: Generator[Event, None, None]) -> None:
    """Show the answer as it comes."""
    with contextlib.closing(answer) as events:
        try:
            for event in events:
                click.echo(harmless(event.text), nl=False)
                if isinstance(event, DoneEvent) and event.finish not in ("eos", "stop"):
                    click.echo(f" [{one_line(event.error or event.finish)}]", nl=False, err=True)
        except KeyboardInterrupt:
            click.echo(" [cancelled]", nl=False, err=True)
    click.echo()


def _report(dropped: int, has_opening: bool) -> None:
    if dropped:
        turns = f"{dropped // 2} oldest turns were" if dropped > 2 else "oldest turn was"
        kept = "; the system message is kept" if has_opening else ""
        click.echo(f"[the conversation is full: its {turns} dropped{kept}; /clear starts anew]", err=True)
