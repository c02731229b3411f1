"""The command `phi-edge VERB`: one file a verb, imported when needed, and one place where errors become a line."""

from __future__ import annotations

import importlib
from typing import Any

import click

from devices.errors import DeviceError
from export.errors import ExportError
from runtimes.errors import RuntimesError

# verb -> "module:command"
VERBS: dict[str, str] = {
    "export": "phi_edge.export:export_command",
    "check": "phi_edge.check:check_command",
    "run": "phi_edge.run:run_command",
    "bench": "phi_edge.bench:bench_command",
    "report": "phi_edge.report:report_command",
    "gate": "phi_edge.gate:gate_command",
    "bundle": "phi_edge.bundle:bundle_command",
    "doctor": "phi_edge.doctor:doctor_command",
    "demo": "phi_edge.demo:demo_command",
}


class UserError(click.ClickException):
    """The user's or the system's fault in one line: what was seen, what is allowed, what to do. Exit 2."""

    exit_code = 2


class LazyGroup(click.Group):
    """A group that knows its verbs by name. The verbs' files import click alone, and the rooms when they are called."""

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
            if str(missing.name).partition(".")[0] in {"export", "runtimes", "devices", "phi_edge"}:
                raise  # a module of ours is our fault
            raise UserError(missing_extra(str(ctx.invoked_subcommand), str(missing.name))) from missing


def missing_extra(verb: str, module: str) -> str:
    """The one line for a verb whose extra was not installed."""
    extra = {"export": "export", "check": "export", "report": "report"}.get(verb, "onnx")
    return f"`phi-edge {verb}` needs {module}, which is not installed: pip install 'phi-edge[{extra}]'"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="phi-edge")
def main() -> None:
    """Phi-3 on devices: export a checkpoint to int4, run it anywhere, measure it honestly."""
