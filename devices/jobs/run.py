"""Run a job: side by side over devices, one cell after the other on each. A device that goes away costs its own cells.

Every cell ends as a row. Killed, the job goes on where it was: its folder has a file for each cell (store.py).
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.drivers.driver import Driver
from devices.drivers.table import open_driver
from devices.errors import DeviceError, LeaseError, LeaseLostError, NotReadyError, StoreError
from devices.jobs.cell import Row, identity, measure_cell
from devices.jobs.plan import Cell, Job
from devices.jobs.store import CellStore
from devices.lab import Device, Lab
from devices.leases.choose import lease_device, lease_key
from devices.measure.measurement import DeviceFacts
from devices.measure.validity import problems
from runtimes.errors import ConnectionLostError, DeviceBusyError, DiskFullError, RuntimesError, TransportError

MOST_CRASHES = 2  # one after the other, of one cell on a device that still answers
STOP_S = 5.0  # for the threads to give their devices back after Ctrl-C
LONGEST_RETRY_S = 3600.0

_ABSENCES = (LeaseLostError, DeviceBusyError, ConnectionLostError)  # trying again may help, whoever answers now
Told = Callable[[Cell, str], None]  # the state of a cell, in words; from any thread


class _Stopped(Exception):
    """The job ends; this thread too."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a job runs in."""

    lab: Lab
    folder: Path  # that has the cells' files
    tell: Told
    save: Callable[[Row], None]  # keep the measurement of a finished cell; from any thread
    wait_s: float = math.inf  # for a device that another job uses
    open_device: Callable[[str, Device], Driver] = open_driver


def run_job(job: Job, setting: Setting) -> list[Row]:
    """A row for each cell, in the order of the plan. Raises StoreError, and what a bug raises."""
    groups: dict[str, list[Cell]] = {}
    for cell in job.cells:
        groups.setdefault(lease_key(setting.lab.device(cell.device)), []).append(cell)
        setting.tell(cell, "queued")
    # Read before anything is done, so that a folder of another job is refused at once.
    stores = {cell.name: CellStore(setting.folder / f"{cell.name}.jsonl", identity(cell)) for cell in job.cells}
    stop = threading.Event()
    workers = [_Worker(job, setting, stores, cells, stop) for cells in groups.values()]
    for worker in workers:
        threading.Thread(target=worker.work, daemon=True).start()
    try:
        for worker in workers:
            while not worker.ended.wait(0.2):  # short, so that Ctrl-C is heard
                pass
    finally:
        stop.set()
        for worker in workers:
            worker.ended.wait(STOP_S)  # not Thread.join: once interrupted, it takes a running thread for an ended one
    for worker in workers:
        if worker.broken is not None:
            raise worker.broken
    rows = {row.cell.name: row for worker in workers for row in worker.rows}
    return [rows[cell.name] for cell in job.cells]


class _Worker:
    """The cells of one device."""

    def __init__(
        self, job: Job, setting: Setting, stores: dict[str, CellStore], cells: Sequence[Cell], stop: threading.Event
    ) -> None:
        self._job, self._setting, self._stores, self._cells, self._stop = job, setting, stores, cells, stop
        self.rows: list[Row] = []
        self.broken: BaseException | None = None  # what ends the whole job
        self.ended = threading.Event()

    def work(self) -> None:
        """A row for each cell, unless the job is stopped."""
        away: dict[str, str] = {}  # device -> why it was left alone
        try:
            for cell in self._cells:
                if cell.device in away:
                    row = Row(cell=cell, state="quarantined", reason=away[cell.device])
                else:
                    row = self._cell(cell)
                if row.state == "away":
                    away[cell.device] = f"{cell.device} was left alone: {row.reason}"
                self.rows.append(row)
                self._setting.tell(cell, row.state if row.reason is None else f"{row.state}: {row.reason}")
        except _Stopped:
            pass
        except BaseException as error:
            self.broken = error
            self._stop.set()
        finally:
            self.ended.set()

    def _cell(self, cell: Cell) -> Row:
        """Try until it is measured, or it is known why it is not."""
        store = self._stores[cell.name]
        crashes = absences = 0
        while True:
            made = len(store.finished.repetitions)
            try:
                return self._measure(cell)
            except StoreError:
                raise
            except NotReadyError as error:
                return Row(cell=cell, state="not ready", reason=str(error))
            except (LeaseLostError, TransportError) as error:
                if isinstance(error, DiskFullError):
                    return Row(cell=cell, state="refused", reason=str(error))
                store.failed(type(error).__name__, str(error))
                if len(store.finished.repetitions) > made:  # it gets on
                    crashes = absences = 0
                if isinstance(error, _ABSENCES) or not self._answers(cell.device):
                    absences += 1
                    if absences > self._job.retries:
                        return Row(cell=cell, state="away", reason=str(error))
                    self._wait(cell, absences, error)
                else:
                    crashes += 1
                    if crashes >= MOST_CRASHES:
                        return Row(cell=cell, state="crashed", reason=str(error))
            except LeaseError as error:
                return Row(cell=cell, state="in use", reason=str(error))
            except (DeviceError, RuntimesError) as error:
                return Row(cell=cell, state="refused", reason=str(error))

    def _measure(self, cell: Cell) -> Row:
        setting, device = self._setting, self._setting.lab.device(cell.device)

        def say(what: str) -> None:
            setting.tell(cell, what)

        self._check_stop()
        with (
            lease_device(setting.lab, cell.device, f"lab run {cell.name}", wait_s=setting.wait_s, say=say) as lease,
            contextlib.closing(setting.open_device(cell.device, device)) as driver,
        ):

            def check() -> None:
                self._check_stop()
                lease.check()

            facts = DeviceFacts(name=cell.device, transport=device.transport)
            measurement = measure_cell(cell, facts, driver, self._stores[cell.name], say, check)
        found = problems(measurement)
        row = Row(
            cell=cell,
            state="invalid" if found else "measured",
            reason="; ".join(found) or None,
            measurement=measurement,
        )
        setting.save(row)
        return row

    def _answers(self, name: str) -> bool:
        """Whether the device is there, and only the process on it was lost."""
        try:
            driver = self._setting.open_device(name, self._setting.lab.device(name))
            with contextlib.closing(driver):
                driver.identify()
        except (DeviceError, RuntimesError):
            return False
        return True

    def _wait(self, cell: Cell, absences: int, error: Exception) -> None:
        wait_s = min(self._job.retry_s * 2 ** (absences - 1), LONGEST_RETRY_S)
        self._setting.tell(cell, f"away: {error}; trying again in {wait_s:g} s ({absences} of {self._job.retries})")
        self._stop.wait(wait_s)
        self._check_stop()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _Stopped
