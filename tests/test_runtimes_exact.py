"""The logits of several tokens checked in one forward are those of a forward for each, bit for bit.

With an artifact whose blocks the processor's kernels round alike for one row and for several. Where they do not, the
engine sees it in the first row, and all that is left to check is that nothing else goes wrong.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from export.artifact import open_artifact
from runtimes.engines.engine import CheckingEngine
from runtimes.registry import ENGINES
from runtimes.system.memory import read_memory
from runtimes.system.pages import Mirrored

PROMPT = 40
COUNT = 48
KINDS = {
    "onnx": {"target": "cpu", "scheme": "int4-b32", "context_tokens": 250},  # no whole number of pages
    "onnx-int8-cache": {"target": "cpu", "scheme": "int4-b32", "context_tokens": 256, "kv_cache": "int8"},
}


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, tiny_export: Callable[..., Path]) -> CheckingEngine:
    name = str(request.param)
    artifact = open_artifact(tiny_export(f"exact-{name}", **KINDS[name]))
    engine = ENGINES[artifact.manifest.format](artifact, 1)
    request.addfinalizer(engine.close)
    assert isinstance(engine, CheckingEngine)
    return engine


@pytest.fixture(scope="module")
def alone(engine: CheckingEngine) -> tuple[list[int], list[npt.NDArray[np.float32]]]:
    """Ids, and the logits after each of the last COUNT from a forward of its own."""
    ids = np.random.default_rng(0).integers(3, engine.vocab_size, PROMPT + COUNT).tolist()
    engine.forward(ids[:PROMPT], 0)
    return ids, [engine.forward([ids[at]], at).copy() for at in range(PROMPT, len(ids))]


@pytest.mark.parametrize("together", [2, 3, 8, 16])
def test_rows_together_are_those_alone(
    engine: CheckingEngine, alone: tuple[list[int], list[npt.NDArray[np.float32]]], together: int
) -> None:
    ids, expected = alone
    engine.forward(ids[:PROMPT], 0)
    got = [
        row.copy()
        for at in range(PROMPT, len(ids), together)
        for row in engine.forward_rows(ids[at : at + together], at, min(together, len(ids) - at))
    ]
    if np.array_equal(got[0], expected[0]):
        assert all(np.array_equal(one, other) for one, other in zip(got, expected, strict=True))
    assert max(np.abs(one - other).max() for one, other in zip(got, expected, strict=True)) < 1
    # What the engine has of the wrong guesses among them is overwritten, and the next token is as if they had not been.
    at = PROMPT + 5
    engine.forward_rows([*ids[PROMPT:at], *ids[:4]], PROMPT, at - PROMPT + 4)
    if np.array_equal(got[0], expected[0]):
        assert np.array_equal(engine.forward([ids[at]], at), expected[at - PROMPT])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such memory")
def test_mirrored_memory_is_one_memory_and_counted_once() -> None:
    size, times = 4096 * mmap.PAGESIZE, 8
    mirrored = Mirrored(size, times)
    everywhere = np.ctypeslib.as_array((ctypes.c_uint8 * (size * times)).from_address(mirrored.address))
    mirrored.array((size,), np.uint8)[7] = 5
    assert everywhere[7::size].tolist() == [5] * times
    before = read_memory()
    everywhere[:] = 1
    after = read_memory()
    assert before is not None and after is not None
    assert size / 2 < after.resident_bytes - before.resident_bytes < 2 * size
