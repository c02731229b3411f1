"""The options by which a verb names a device, and waits for it: --device, --lab and --wait-s."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from phi_edge.files import FILE


class DeviceName(click.ParamType[str]):
    """A device of the lab file. Completion lists the names; the verb itself refuses an unknown one."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names of the lab file that begin with `incomplete`; none if the file cannot be read."""
        from devices.drivers.table import open_lab
        from devices.errors import LabError

        lab = ctx.params.get("lab")
        try:
            devices = open_lab(None if lab is None else Path(lab)).devices
        except LabError:
            return []
        return [CompletionItem(name) for name in devices if name.startswith(incomplete)]


lab_option = click.option(
    "--lab", type=FILE, metavar="FILE", show_default="lab.toml in this folder, if there is one",
    help="The file that lists your devices.",
)  # fmt: skip


class Wait(click.FloatRange):
    """Seconds to wait: 0 for one look, and as long as one likes."""

    def __init__(self) -> None:
        super().__init__(0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


wait_option = click.option(
    "--wait-s", type=Wait(), metavar="SECONDS", default=0.0,
    help="How long to wait for a device that another job uses.",
)  # fmt: skip
