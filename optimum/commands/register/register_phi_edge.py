"""`optimum-cli export phi-edge CHECKPOINT OUT ...`: the same export behind optimum's own command line.

optimum finds this file by its place in the namespace package optimum.commands.register; heavy imports stay in run().
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class PhiEdgeExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """Parses optimum's way and calls export.pipeline."""

    COMMAND = CommandInfo(name="phi-edge", help="Export Phi-3 to int4 ONNX or ExecuTorch for a device.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("checkpoint", help="a local folder, a hub id, or tiny")
        parser.add_argument("out", type=Path, help="the artifact's folder, new or empty")
        parser.add_argument("--target", default="cpu")
        parser.add_argument("--format")
        parser.add_argument("--scheme")
        parser.add_argument("--context", type=int)
        parser.add_argument("--task", default="text-generation-with-past", help="the one task there is")

    def run(self) -> None:
        from optimum.exporters.tasks import TasksManager

        from export.errors import ExportError
        from export.pipeline import export_model
        from export.request import ExportRequest
        from phi_edge.export import summary

        task = TasksManager.map_from_synonym(self.args.task)
        if task not in ("text-generation", "text-generation-with-past"):
            sys.exit(_fail(f"--task {self.args.task}: only text-generation-with-past is known"))
        try:
            artifact = export_model(
                ExportRequest(
                    checkpoint=self.args.checkpoint,
                    out=self.args.out,
                    target=self.args.target,
                    format=self.args.format,
                    scheme=self.args.scheme,
                    context_tokens=self.args.context,
                )
            )
        except ExportError as error:
            sys.exit(_fail(str(error)))
        print(summary(artifact))


def _fail(message: str) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return 2


REGISTER_COMMANDS = [(PhiEdgeExportCommand, ExportCommand)]
