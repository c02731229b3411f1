"""Lines that libraries log while they are imported and that no user can act on. They must not reach a terminal."""

from __future__ import annotations

import logging

# logger -> what its lines contain
NOISE = {
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",  # torchao 0.18 with torch 2.13
    "torchao": "Failed to load",  # its CUDA kernels, on a machine without CUDA
}


def quiet_libraries() -> None:
    """From now on these lines are dropped; others of the same loggers still appear."""
    for name, text in NOISE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Without) for each in logger.filters):
            logger.addFilter(_Without(text))


class _Without(logging.Filter):
    """Drops the records that contain a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()
