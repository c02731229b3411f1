"""`--max-bytes` and `--bits-per-weight`: more bits where they help, within the budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export.errors import OptionError
from export.pipeline import export_model
from export.request import ExportRequest
from export.scheme import Precision
from export.weights.methods.budget import Choice, choose

SCHEME = "uint4-b64-e8-weighted"


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint()


def weights(folder: Path) -> int:
    return (folder / "model.onnx.data").stat().st_size


def test_a_budget_is_spent_and_kept(checkpoint: Path, tmp_path: Path) -> None:
    plain = export_model(ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "plain", scheme=SCHEME))
    limit = int(weights(plain.folder) * 1.1)
    made = export_model(
        ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "made", scheme=SCHEME, max_bytes=limit)
    )
    assert weights(plain.folder) < 0.97 * limit < weights(made.folder) <= limit
    assert set(made.manifest.scheme.exceptions.values()) <= {
        "4 bits, blocks of 32, zero points",
        "8 bits, blocks of 64",
    }
    assert made.manifest.loss.mean_kl < plain.manifest.loss.mean_kl


def test_a_budget_that_is_too_small_is_refused_at_once(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"take 0\.\d MB at least, and the budget leaves .*; allow more"):
        export_model(
            ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", scheme=SCHEME, bits_per_weight=4.0)
        )


def test_bytes_go_where_they_lower_the_kl_most() -> None:
    four, eight = Precision(bits=4, block_size=32), Precision(bits=8, block_size=32)
    ways = {name: [Choice(four, 10, kl), Choice(eight, 20, 0.0)] for name, kl in (("a", 0.1), ("b", 0.3), ("c", 0.0))}
    assert [name for name, choice in choose(ways, 45).items() if choice.precision == eight] == ["b"]
    assert [name for name, choice in choose(ways, 50).items() if choice.precision == eight] == ["a", "b"]
    # All the same: the first ones get them, in every run.
    equal = {name: [Choice(four, 10, 0.0), Choice(four, 15, 0.0), Choice(eight, 20, 0.0)] for name in "abc"}
    assert [choice.bytes for choice in choose(equal, 40).values()] == [20, 10, 10]
