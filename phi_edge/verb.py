"""What every verb is made of: help in groups with examples, choices that suggest, errors in one line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from phi_edge.errors import UNEXPECTED, did_you_mean, one_line, usage_error
from phi_edge.habits import option_habit
from phi_edge.quiet import quiet_libraries
from runtimes.terminal import typed_text

MOST_SECONDS = 1e6
TIMED = re.compile(r"'([0-9]{1,4}) ?([smh])[a-z]*' is not a valid float")  # of `--deadline 5s`
THOUSANDS = re.compile(r"'([1-9][0-9]{0,5}) ?[kK]' is not a valid")  # click's words for `--context 4k`


class Verb(click.Command):
    """One verb of `phi-edge`.

    `examples` are the command lines that end its help; `groups` gives titles to options: title -> names of parameters
    (what is in no group is listed under Options); `extra` is what pip must install for it; `too_many` says what to do
    with words that no argument takes: it gets the arguments by name, and those words.
    """

    def __init__(
        self,
        *arguments: Any,
        examples: Sequence[str],
        groups: Mapping[str, Sequence[str]] | None = None,
        extra: str = "onnx",
        too_many: Callable[[Mapping[str, Any], str], str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.examples, self.groups, self.extra, self.too_many = examples, groups or {}, extra, too_many

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the words of the command line. Raises UserError."""
        words = list(args)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else f"phi-edge {self.name}"
            raise usage_error(error, command, self._hint(error, words)) from None

    def _hint(self, error: click.UsageError, words: Sequence[str]) -> str | None:
        """What was probably meant, where that is known."""
        if isinstance(error, click.NoSuchOption):
            return option_habit(str(self.name), error.option_name, words)
        if isinstance(error, click.BadParameter) and (short := THOUSANDS.search(error.message)):
            return f"write the number out, such as {int(short[1]) * 1024}"
        if isinstance(error, click.BadParameter) and (timed := TIMED.search(error.message)):
            return f"give seconds, as a number alone, such as {int(timed[1]) * {'s': 1, 'm': 60, 'h': 3600}[timed[2]]}"
        if isinstance(error, click.MissingParameter):
            return f"an example: {self.examples[0]}"
        extra = UNEXPECTED.search(error.message)
        if extra and self.too_many and error.ctx is not None:
            return self.too_many(error.ctx.params, extra[1])
        return None

    def invoke(self, ctx: click.Context) -> Any:
        """Do the work. Raises UserError or Failed."""
        quiet_libraries()
        with one_line(str(self.name), self.extra):
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The groups in their order, then the other options."""
        grouped = {name: title for title, names in self.groups.items() for name in names}
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in (*self.groups, "Options")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):  # the docstring explains arguments
                sections[grouped.get(parameter.name or "", "Options")].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples."""
        with formatter.section("Examples" if len(self.examples) > 1 else "Example"):
            for example in self.examples:
                formatter.write(f"  {example}\n")


class Choice(click.Choice[str]):
    """One of some words; another word is refused with the known ones and the one that was probably meant. `habits` has
    words that people try -> what to do."""

    def __init__(self, choices: Sequence[str], habits: Mapping[str, str] | None = None) -> None:
        super().__init__(choices)
        self.habits = habits or {}

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        known = [str(choice) for choice in self.choices]
        habit = self.habits.get(str(value).lower())
        hint = did_you_mean(str(value), known) if habit is None else f"; {habit}"
        return f"unknown {str(value)!r}; known: {', '.join(known)}{hint}"


class Seconds(click.FloatRange):
    """A time limit. It is never infinite, and never NaN, which every comparison would let pass."""

    def __init__(self) -> None:
        super().__init__(0, MOST_SECONDS, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


class Text(click.ParamType[str]):
    """A text for a model, in any locale."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return typed_text(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Parsed(click.ParamType[Any]):
    """A value that a function of ours reads from text. It raises ValueError or an error of the rooms."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        from export.errors import ExportError

        try:
            return self.parse(value)
        except (ValueError, ExportError) as error:
            self.fail(str(error), param, ctx)
