"""Many measurements by one command: every artifact on every device with every prompt length, one after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.drivers.cloud.device import CloudDevice
from devices.drivers.cloud.driver import CloudDriver
from devices.drivers.driver import Driver
from devices.drivers.table import open_driver
from devices.errors import DeviceError, LeaseError
from devices.lab import Device, Lab
from devices.leases.choose import lease_device
from devices.leases.lease import Lease, Say
from devices.measure.bench import Plan, measure
from devices.measure.cloud import measure_service
from devices.measure.contender import Contender, name_of, path_of
from devices.measure.interleave import Rounds, measure_in_turns
from devices.measure.measurement import DeviceFacts, Measurement
from phi_edge.files import check_writable, write_text
from phi_edge.progress import steps
from runtimes.errors import RuntimesError


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement to be made, and its file."""

    artifact: Contender | None  # None: the model that the device, a service, runs
    device: str
    plan: Plan
    out: Path

    @property
    def name(self) -> str:
        """The artifact's folder; of a service the device."""
        return self.device if self.artifact is None else name_of(self.artifact)

    @property
    def title(self) -> str:
        """The artifact's folder, the device and the prompt's length."""
        where = "" if self.artifact is None else f" on {self.device}"
        return f"{self.name}{where}, prompt {self.plan.prompt_tokens}"


@dataclass(frozen=True)
class Outcome:
    """A cell's measurement, or why there is none."""

    cell: Cell
    measurement: Measurement | None = None
    error: DeviceError | RuntimesError | None = None


def what_is_measured(
    artifacts: Sequence[Contender], devices: Mapping[str, Device]
) -> list[tuple[Contender | None, str]]:
    """Each artifact on each device, and each service once, without one. Raises DeviceError where either is missing."""
    services = {name for name, device in devices.items() if isinstance(device, CloudDevice)}
    if artifacts and services == set(devices):
        raise DeviceError(
            f"device {min(services)} is a service that runs its own model: leave {path_of(artifacts[0])} out, or give "
            "a device for it, too"
        )
    if not artifacts and services != set(devices):
        raise DeviceError(
            f"ARTIFACT is missing, and device {min(set(devices) - services)} needs one; an example: phi-edge bench "
            "my-artifact --out here.json"
        )
    every: dict[str, Sequence[Contender | None]] = {name: [None] if name in services else artifacts for name in devices}
    return [(artifact, name) for name, own in every.items() for artifact in own]


def cells_of(
    pairs: Sequence[tuple[Contender | None, str]], plans: Mapping[str, Plan], prompts: Sequence[int], folder: Path
) -> list[Cell]:
    """What is measured, with every prompt length; a file of its own for each. `plans` by device.

    Raises DeviceError where a file cannot be written, or two cells would have the same.
    """
    cells = []
    for (artifact, device), tokens in itertools.product(pairs, prompts):
        names = [device] if artifact is None else [name_of(artifact), device]
        parts = [*names, *([str(tokens)] if len(prompts) > 1 else [])]
        own = dataclasses.replace(plans[device], prompt_tokens=tokens)
        cells.append(Cell(artifact=artifact, device=device, plan=own, out=folder / f"{'-'.join(parts)}.json"))
    files = Counter(cell.out for cell in cells)
    for cell in cells:
        if files[cell.out] > 1:
            raise DeviceError(f"{cell.out}: two measurements would have this file; rename an artifact's folder")
        check_writable(cell.out)
    return cells


def bench_cells(
    cells: Sequence[Cell],
    lab: Lab,
    wait_s: float,
    say: Say,
    open_device: Callable[[str, Device], Driver] = open_driver,
) -> Generator[Outcome]:
    """Measure one cell after the other, a device's together; each is written as soon as it is there.

    A device is leased meanwhile; one that another job uses is waited for. A cell that fails is an outcome, too: the
    next ones are measured all the same.
    """
    for name, own in itertools.groupby(cells, key=lambda cell: cell.device):
        device, here = lab.device(name), list(own)
        job = f"bench {here[0].title}"
        try:
            with (
                lease_device(lab, name, job, wait_s=wait_s, say=say) as lease,
                contextlib.closing(open_device(name, device)) as driver,
            ):
                while here:
                    yield _bench(here[0], DeviceFacts(name=name, transport=device.transport), driver, lease)
                    del here[0]
        except LeaseError as error:
            yield from (Outcome(cell, error=error) for cell in here)


def _bench(cell: Cell, facts: DeviceFacts, driver: Driver, lease: Lease) -> Outcome:
    try:
        with steps(f"bench {cell.title}", cell.plan.requests) as step:

            def leased_step(done: int, doing: str) -> None:
                lease.check()
                step(done, doing)

            if cell.artifact is not None:
                measurement = measure(cell.artifact, facts, driver, cell.plan, leased_step)
            else:
                assert isinstance(driver, CloudDriver)
                measurement = measure_service(driver, cell.plan, leased_step)
        write_text(cell.out, measurement.to_json())
    except LeaseError:
        raise
    except (DeviceError, RuntimesError) as error:
        return Outcome(cell, error=error)
    return Outcome(cell, measurement)


def bench_against(
    cell: Cell, old: Contender, lab: Lab, wait_s: float, rounds: Rounds, say: Say
) -> tuple[Measurement, Measurement]:
    """Measure the cell's artifact and `old` in turns, A B B A, and write both; the old one's file is `old_file(cell)`.

    Raises DeviceError and RuntimesError.
    """
    if cell.artifact is None:
        raise DeviceError(f"--against compares two artifacts, and device {cell.device} is a service; leave it out")
    device, sessions = lab.device(cell.device), 2 * rounds.most
    facts = DeviceFacts(name=cell.device, transport=device.transport)
    with (
        lease_device(lab, cell.device, f"bench {cell.title}", wait_s=wait_s, say=say) as lease,
        contextlib.closing(open_driver(cell.device, device)) as driver,
        steps(f"bench {cell.title}, in turns", 2 * sessions * cell.plan.requests) as step,
    ):

        def leased_step(done: int, doing: str) -> None:
            lease.check()
            step(done, doing)

        new, baseline = measure_in_turns(cell.artifact, old, facts, driver, cell.plan, rounds, leased_step, say)
    write_text(cell.out, new.to_json())
    write_text(old_file(cell.out), baseline.to_json())
    return new, baseline


def old_file(out: Path) -> Path:
    """here.json -> here.against.json."""
    return out.with_name(f"{out.stem}.against{out.suffix}")
