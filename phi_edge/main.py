"""The command `phi-edge VERB`: one file a verb, imported when it is needed."""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any

import click

from phi_edge.errors import UserError, allowed_by_system, did_you_mean, interruptible, usage_error
from phi_edge.habits import verb_habit

BUG = 70  # EX_SOFTWARE of sysexits.h
# verb -> "module:command"
VERBS: dict[str, str] = {
    "export": "phi_edge.verbs.export:export_command",
    "check": "phi_edge.verbs.artifact.check:check_command",
    "diff": "phi_edge.verbs.artifact.diff:diff_command",
    "run": "phi_edge.verbs.run:run_command",
    "serve": "phi_edge.verbs.serve:serve_command",
    "score": "phi_edge.verbs.score:score_command",
    "bench": "phi_edge.verbs.bench:bench_command",
    "report": "phi_edge.verbs.report:report_command",
    "gate": "phi_edge.verbs.gate:gate_command",
    "lab list": "phi_edge.verbs.lab_list:lab_list_command",
    "lab run": "phi_edge.verbs.lab_run:lab_run_command",
    "history": "phi_edge.verbs.history:history_command",
    "bundle": "phi_edge.verbs.bundle:bundle_command",
    "doctor": "phi_edge.verbs.doctor:doctor_command",
    "demo": "phi_edge.verbs.demo:demo_command",
}


class LazyGroup(click.Group):
    """A group that knows its verbs by name. A verb's file imports click alone; its rooms are imported by its work."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run the command line. A bug of ours ends it with its traceback and exit code 70."""
        try:
            return super().main(*args, **settings)
        except Exception:
            traceback.print_exc()
            click.echo("This is a bug of phi-edge: please report it with the lines above.", err=True)
            sys.exit(BUG)

    def invoke(self, ctx: click.Context) -> Any:
        """Find the verb and do its work; see Verb.invoke. Raises Interrupted, and UserError."""
        with interruptible(), allowed_by_system():
            return super().invoke(ctx)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the words before the verb. Raises UserError."""
        try:
            with allowed_by_system():  # the help into a full disk, say
                return super().make_context(info_name, args, parent, **extra)
        except click.exceptions.NoArgsIsHelpError:
            raise  # `phi-edge` alone shows the help
        except click.UsageError as error:
            hint = verb_habit(error.option_name, VERBS) if isinstance(error, click.NoSuchOption) else None
            raise usage_error(error, "phi-edge", hint) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, of one word or two. Raises UserError, which names the one that was probably meant."""
        if (two := " ".join(args[:2])) in VERBS and len(args) > 1:
            return two, self.get_command(ctx, two), args[2:]
        longer = [name for name in VERBS if name.startswith(f"{args[0]} ")]
        if longer and all(word.startswith("-") for word in args[1:2]):
            raise UserError(f"{args[0]!r} needs a second word: {' or '.join(longer)}")
        if args[0] not in VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            habit = verb_habit(args[0], VERBS)
            word = two if longer else args[0]
            hint = f"; {habit}" if habit is not None else did_you_mean(word, VERBS)
            raise UserError(f"unknown verb {word!r}; known: {', '.join(VERBS)}{hint}")
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, and what the exit codes mean."""
        with formatter.section("Examples"):
            for example in (
                "phi-edge export tiny my-artifact",
                'phi-edge run my-artifact "Turn off the lamp in the kitchen."',
                "phi-edge VERB --help",
            ):
                formatter.write(f"  {example}\n")
        with formatter.section("Exit codes"):
            formatter.write_dl(
                [
                    ("0", "Done, and all is well."),
                    ("1", "Done, and the outcome is bad: a budget missed, a check failed."),
                    ("2", "Not done: one line on stderr says why, what is allowed and what to do."),
                    ("70", "Not done, by a bug of phi-edge: a traceback on stderr."),
                    ("130", "Interrupted."),
                ]
            )


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
)
@click.version_option(None, "--version", "-V", package_name="phi-edge", message="phi-edge %(version)s")
def main() -> None:
    """Run Microsoft's Phi-3 models on phones, boards and PCs: export a checkpoint, run it, measure it."""
