"""What a driver has that opens models of other tools, too: today that of this machine alone."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from devices.drivers.driver import Driver, Loading, Opened
from devices.errors import DeviceError
from runtimes.stock.model import StockModel


@runtime_checkable
class StockDriver(Protocol):
    """A Driver that also has this."""

    def open_stock(self, model: StockModel, loading: Loading, context_tokens: int) -> Opened:
        """Load it in a fresh process, for sequences of so many tokens. Nothing is staged."""
        ...


def stock_driver(driver: Driver, model: StockModel) -> StockDriver:
    """The same driver. Raises DeviceError for one that takes artifacts only."""
    if not isinstance(driver, StockDriver):
        raise DeviceError(
            f"{model.path}: another tool's model is measured on the device local alone; run bench on the other "
            "machine itself"
        )
    return driver
