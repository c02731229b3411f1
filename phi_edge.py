"""The command line's door: `phi-edge VERB`. Each verb lives in its room and is imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from devices.errors import DeviceError
from export.errors import ExportError
from runtimes.errors import RuntimesError

if TYPE_CHECKING:
    from export.artifact import Artifact
    from export.conformance import Subject
    from runtimes.api import Runtime

# verb -> "module:command". One verb, one command; the rooms own them.
VERBS: dict[str, str] = {
    "export": "export.command:export_command",
    "check": "export.check:check_command",
    "run": "runtimes.command:run_command",
    "bench": "devices.command:bench_command",
    "report": "devices.command:report_command",
    "gate": "devices.command:gate_command",
    "demo": "devices.demo:demo_command",
    "bundle": "runtimes.bundle:bundle_command",
    "doctor": "devices.doctor:doctor_command",
}


class UserError(click.ClickException):
    """The user's fault, told in one line: what was seen, what is allowed, what to do. Exit 2."""

    exit_code = 2


class Door(click.Group):
    """A group that knows its verbs by name and loads a room when its verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb. The one place where the rooms' errors become one line for the user."""
        try:
            return super().invoke(ctx)
        except (DeviceError, ExportError, RuntimesError) as error:
            raise UserError(str(error)) from error
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
                raise
            raise UserError("the system refused more memory (ulimit -v?); raise the limit, or free some") from error
        except ModuleNotFoundError as missing:
            if str(missing.name).partition(".")[0] in {"export", "runtimes", "devices"}:
                raise  # a module of ours is our fault
            raise UserError(missing_extra(str(ctx.invoked_subcommand), str(missing.name))) from missing


def missing_extra(verb: str, module: str) -> str:
    """The one line for a verb whose extra was not installed."""
    extra = {"export": "export", "check": "export", "report": "report"}.get(verb, "onnx")
    return f"`phi-edge {verb}` needs {module}, which is not installed: pip install 'phi-edge[{extra}]'"


@click.group(cls=Door, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="phi-edge")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Phi-3 on devices: export a checkpoint to int4, run it anywhere, measure it honestly."""
    # runtimes/ must not import devices/, so its verbs get the lab from here.
    ctx.obj = open_device
    # export/ must not import runtimes/, so its check gets an engine from here.
    ctx.meta["phi-edge.open_subject"] = open_subject


def open_subject(artifact: Artifact) -> Subject:
    """For export.check: the artifact in its own engine."""
    from runtimes.subject import open_subject

    return open_subject(artifact)


def open_device(artifact: Path, name: str, lab: Path | None, threads: int | None) -> Runtime:
    """For runtimes.command: a runtime on a device of the lab."""
    from devices.drivers import open_device_runtime

    return open_device_runtime(artifact, name, lab=lab, threads=threads, say=lambda what: click.echo(what, err=True))


if __name__ == "__main__":
    sys.exit(main())
