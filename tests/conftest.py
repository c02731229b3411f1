"""Fixtures that more than one file of tests needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def _artifact(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"set {variable} to the folder of an exported tiny artifact")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def tiny_onnx() -> Path:
    return _artifact("PHI_EDGE_TINY_ONNX")


@pytest.fixture(scope="session")
def tiny_executorch() -> Path:
    return _artifact("PHI_EDGE_TINY_EXECUTORCH")
