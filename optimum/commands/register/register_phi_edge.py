"""`optimum-cli export phi-edge CHECKPOINT OUT ...`: the same command, with the same options, in optimum's command line.

optimum finds this file by its place in the namespace package optimum.commands.register.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import click
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from phi_edge.verbs.export import export_command

TASKS = ("text-generation-with-past", "text-generation")


class PhiEdgeExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """argparse's view of the click command: each of its parameters is offered, and its work is called."""

    COMMAND = CommandInfo(name="phi-edge", help="Export Phi-3 to int4 ONNX or ExecuTorch for a device.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        parser.description = export_command.help
        for parameter in export_command.params:
            if isinstance(parameter, click.Option):
                add_option(parser, parameter)
            else:
                parser.add_argument(str(parameter.name), type=converter(parameter))
        parser.add_argument("--task", choices=TASKS, default=TASKS[0], help="there is only this one")

    def run(self) -> None:
        context = click.Context(export_command, info_name="optimum-cli export phi-edge")
        context.params = {str(each.name): getattr(self.args, str(each.name)) for each in export_command.params}
        try:
            export_command.invoke(context)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)


def add_option(parser: argparse.ArgumentParser, option: click.Option) -> None:
    """The same flag, type, choices, default and help."""
    text = (option.help or "").replace("%", "%%")
    if option.is_flag:
        parser.add_argument(*option.opts, dest=option.name, action="store_true", help=text)
        return
    default = option.show_default if isinstance(option.show_default, str) else option.default
    parser.add_argument(
        *option.opts,
        dest=option.name,
        type=converter(option),
        default=option.default,
        action=Collected if option.multiple else "store",
        metavar=option.metavar,
        choices=option.type.choices if isinstance(option.type, click.Choice) else None,
        help=f"{text} [default: {default}]",
    )


class Collected(argparse.Action):
    """A repeated option, as click gives it: a tuple."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), values))


def converter(parameter: click.Parameter) -> Callable[[str], object]:
    """click's conversion of a text, for argparse."""

    def convert(text: str) -> object:
        try:
            return parameter.type.convert(text, parameter, None)
        except click.BadParameter as error:
            raise argparse.ArgumentTypeError(error.message) from error

    return convert


REGISTER_COMMANDS = [(PhiEdgeExportCommand, ExportCommand)]
