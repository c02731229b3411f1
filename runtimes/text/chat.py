"""A conversation on a terminal: each turn goes through the chat template, the KV cache is kept between turns."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import click

from runtimes.api import DoneEvent, GenerateRequest, Message, Runtime
from runtimes.errors import RequestError


def chat(runtime: Runtime, opening: Sequence[Message], template: GenerateRequest) -> None:
    """Read a line, answer it, until the input ends. Ctrl-C ends an answer, or the conversation between two.

    `template` gives everything but messages and session.
    """
    click.echo("An empty line or Ctrl-D ends the conversation; Ctrl-C ends an answer.", err=True)
    messages = list(opening)
    while True:
        try:
            line = click.prompt(">", prompt_suffix=" ", default="", show_default=False, err=True)
        except click.Abort:
            click.echo(err=True)
            return
        if not line.strip():
            return
        turn = [*messages, Message("user", line)]
        try:
            answer = _answer(runtime, dataclasses.replace(template, messages=turn, session="chat"))
        except RequestError as error:
            # The turn is refused, the conversation so far is still good.
            click.echo(f"Error: {error}", err=True)
            continue
        messages = [*turn, Message("assistant", answer)]


def _answer(runtime: Runtime, request: GenerateRequest) -> str:
    text = ""
    with contextlib.closing(runtime.generate(request)) as events:
        try:
            for event in events:
                text += event.text
                click.echo(event.text, nl=False)
                if isinstance(event, DoneEvent) and event.finish not in ("eos", "stop"):
                    click.echo(f" [{event.error or event.finish}]", nl=False, err=True)
        except KeyboardInterrupt:
            click.echo(" [cancelled]", nl=False, err=True)
    click.echo()
    return text
