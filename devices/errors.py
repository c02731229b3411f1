"""What devices/ can raise.

DeviceError             one line for the user, exit 2
├── LabError            lab.toml is wrong, or names no such device
├── WorkerError         the process that holds the model failed (carries exit code and last lines)
├── MeasurementError    a file is not a measurement, or two measurements cannot be compared
└── BudgetError         a budget file is wrong, or its budgets and the measurements do not meet
"""

from __future__ import annotations

from collections.abc import Sequence


class DeviceError(Exception):
    """The message says what was seen, what is allowed and what to do."""


class LabError(DeviceError):
    """The lab file or the device's name cannot be used."""


class WorkerError(DeviceError):
    """The worker process failed. `exit_code` is None where it had to be killed."""

    def __init__(self, message: str, *, exit_code: int | None = None, last_lines: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([message, *last_lines]))
        self.exit_code = exit_code
        self.last_lines = tuple(last_lines)


class MeasurementError(DeviceError):
    """The measurement cannot be read, or cannot be used for this."""


class BudgetError(DeviceError):
    """The budgets cannot be read, or do not fit the measurements."""
