"""What devices/ can raise.

DeviceError             one line for the user, exit 2
├── LabError            lab.toml is wrong, or names no such device
├── MeasurementError    a file is not a measurement, or two measurements cannot be compared
└── BudgetError         a budget file is wrong, or its budgets and the measurements do not meet
"""

from __future__ import annotations


class DeviceError(Exception):
    """The message says what was seen, what is allowed and what to do."""


class LabError(DeviceError):
    """The lab file or the device's name cannot be used."""


class MeasurementError(DeviceError):
    """The measurement cannot be read, or cannot be used for this."""


class BudgetError(DeviceError):
    """The budgets cannot be read, or do not fit the measurements."""
