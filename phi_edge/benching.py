"""Many measurements by one command: every artifact on every device with every prompt length, one after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.drivers.driver import Driver
from devices.drivers.table import open_driver
from devices.errors import DeviceError
from devices.lab import Device
from devices.measure.bench import Plan, measure
from devices.measure.measurement import DeviceFacts, Measurement
from export.artifact import Artifact
from phi_edge.files import check_writable, write_text
from phi_edge.progress import steps
from runtimes.errors import RuntimesError


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement to be made, and its file."""

    artifact: Artifact
    device: str
    plan: Plan
    out: Path

    @property
    def title(self) -> str:
        """The artifact's folder, the device and the prompt's length."""
        return f"{self.artifact.folder.resolve().name} on {self.device}, prompt {self.plan.prompt_tokens}"


@dataclass(frozen=True)
class Outcome:
    """A cell's measurement, or why there is none."""

    cell: Cell
    measurement: Measurement | None = None
    error: DeviceError | RuntimesError | None = None


def cells_of(
    artifacts: Sequence[Artifact], plans: Mapping[str, Plan], prompts: Sequence[int], folder: Path
) -> list[Cell]:
    """Every artifact, device and prompt length; a file of its own for each. `plans` by device.

    Raises DeviceError where a file cannot be written, or two cells would have the same.
    """
    cells = []
    for (device, plan), artifact, tokens in itertools.product(plans.items(), artifacts, prompts):
        parts = [artifact.folder.resolve().name, device, *([str(tokens)] if len(prompts) > 1 else [])]
        own = dataclasses.replace(plan, prompt_tokens=tokens)
        cells.append(Cell(artifact=artifact, device=device, plan=own, out=folder / f"{'-'.join(parts)}.json"))
    files = Counter(cell.out for cell in cells)
    for cell in cells:
        if files[cell.out] > 1:
            raise DeviceError(f"{cell.out}: two measurements would have this file; rename an artifact's folder")
        check_writable(cell.out)
    return cells


def bench_cells(
    cells: Sequence[Cell],
    devices: Mapping[str, Device],
    open_device: Callable[[str, Device], Driver] = open_driver,
) -> Iterator[Outcome]:
    """Measure one cell after the other, a device's together; each is written as soon as it is there.

    A cell that fails is an outcome, too: the next ones are measured all the same.
    """
    for device, own in itertools.groupby(cells, key=lambda cell: cell.device):
        facts = DeviceFacts(name=device, transport=devices[device].transport)
        with contextlib.closing(open_device(device, devices[device])) as driver:
            for cell in own:
                try:
                    with steps(f"bench {cell.title}", cell.plan.requests) as step:
                        measurement = measure(cell.artifact, facts, driver, cell.plan, step)
                    write_text(cell.out, measurement.to_json())
                    yield Outcome(cell, measurement)
                except (DeviceError, RuntimesError) as error:
                    yield Outcome(cell, error=error)
