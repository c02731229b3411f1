"""Compiled loops are kept on disk where that is possible, and work where it is not."""

from __future__ import annotations

import errno
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt
import pytest
from numba.core.caching import FunctionCache

from export.weights.methods.compiled import Loop, compiled


def double(values: npt.NDArray[np.float32]) -> None:
    for n in range(len(values)):
        values[n] *= np.float32(2)


def doubles(loop: Loop) -> bool:
    values = np.arange(3, dtype=np.float32)
    loop(values)
    return values.tolist() == [0, 2, 4]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def test_the_code_is_kept(cache: Path) -> None:
    assert doubles(compiled(fastmath=False)(double))
    assert len([*cache.rglob("*.nbc")]) == 1
    assert doubles(compiled(fastmath=False)(double))


def test_a_full_disk_keeps_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FunctionCache, "save_overload", full)
    loop = compiled(fastmath=False)(double)
    assert doubles(loop) and doubles(loop) and not [*cache.rglob("*.nbc")]


def test_no_folder_that_can_be_written_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object) -> None:
        raise RuntimeError("cannot cache function 'double': no locator available")

    monkeypatch.setattr(FunctionCache, "__init__", nowhere)
    assert doubles(compiled(fastmath=False)(double))
