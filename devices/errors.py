"""What devices/ can raise.

DeviceError             one line for the user, exit 2
├── LabError            lab.toml is wrong, or names no such device
├── LeaseError          another job uses the device, or leases cannot be kept
│   └── LeaseLostError  the device may be another job's by now
├── PlanError           a plan of `lab run` is wrong
├── StoreError          what a job has finished cannot be stored, or read again
├── NotReadyError       the device did not become ready for a repetition in time
├── MeasurementError    a file is not a measurement, or two measurements cannot be compared
└── BudgetError         a budget file is wrong, or its budgets and the measurements do not meet
"""

from __future__ import annotations


class DeviceError(Exception):
    """The message says what was seen, what is allowed and what to do."""


class LabError(DeviceError):
    """The lab file or the device's name cannot be used."""


class LeaseError(DeviceError):
    """The device is in use, or it cannot be found out whether it is."""


class LeaseLostError(LeaseError):
    """The job had the device, and may not have it any more."""


class PlanError(DeviceError):
    """The plan cannot be read, or asks for what is not there."""


class StoreError(DeviceError):
    """A file of finished work cannot be written or read; what is in it stays."""


class NotReadyError(DeviceError):
    """The device stayed too hot, too busy or too empty."""


class MeasurementError(DeviceError):
    """The measurement cannot be read, or cannot be used for this."""


class BudgetError(DeviceError):
    """The budgets cannot be read, or do not fit the measurements."""
