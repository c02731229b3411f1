"""What the verbs print. Nothing that came from a device, an artifact or a model reaches the terminal raw."""

from __future__ import annotations

import sys

import click

from runtimes.terminal import harmless


def echo(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print lines: a summary, a table, a verdict."""
    click.echo(harmless(text), nl=nl, err=err)


def echo_answer(text: str) -> None:
    """Print a piece of a model's answer: as it is into a file or a pipe, without commands on a terminal."""
    shown = harmless(text) if sys.stdout is not None and sys.stdout.isatty() else text
    click.echo(shown.encode("utf-8", "replace").decode("utf-8"), nl=False)
