"""`--max-bytes` and `--bits-per-weight`: more bits where they help, within the budget."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.pipeline import export_model
from export.request import ExportRequest
from export.scheme import Precision
from export.weights.methods.budget import Choice, choose
from phi_edge.main import main

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


# What the dry run refuses as well: options, and the line.
REFUSED = {
    "bytes": (
        ["--max-bytes", "1"],
        r"--max-bytes 1: scheme uint4-b64-e8-weighted takes 0\.\d\d MB at least; allow more",
    ),
    "no bytes": (["--max-bytes", "0", "--scheme", "fp32"], "are for 4-bit schemes, and fp32 keeps float"),
    "bits": (["--bits-per-weight", "4"], r"--bits-per-weight 4: scheme \S+ takes \d\.\d+ bits at least; allow more"),
    "no text": (["--calibration", "/dev/null"], "/dev/null: has 0 tokens; at least 512 are needed"),
    "a folder": (["--calibration", "."], r"\.: cannot be read \(Is a directory\); give a text file"),
    "endless": (["--calibration", "/dev/zero"], "/dev/zero: has more than 268435456 bytes; give a shorter text"),
    "unread": (["--calibration", "a.txt", "--scheme", "int4-b32"], "--calibration: scheme int4-b32 looks at no text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_dry_run_refuses_what_the_export_refuses(checkpoint: Path, tmp_path: Path, case: str) -> None:
    options, line = REFUSED[case]
    words = ["export", str(checkpoint), str(tmp_path / "out"), *options]
    dry, real = (CliRunner().invoke(main, [*words, *more]) for more in (["--dry-run"], ["--quiet"]))
    assert dry.exit_code == real.exit_code == 2, dry.output + real.output
    assert dry.stderr == real.stderr and len(dry.stderr.splitlines()) == 1 and re.search(line, dry.stderr), dry.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_calibration_text_may_come_from_a_pipe(checkpoint: Path, tmp_path: Path) -> None:
    """As bash's <(...) gives one: it can be read once."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"):
        with os.fdopen(writing, "w", encoding="utf-8") as text:
            text.write("Turn off the lamp in the kitchen.\n\n" * 1000)
        words = ["export", str(checkpoint), str(tmp_path / "out"), "--quiet", "--calibration", f"/dev/fd/{reading}"]
        result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output


def test_the_least_that_a_refusal_names_is_enough(checkpoint: Path, tmp_path: Path) -> None:
    for option in ("--max-bytes", "--bits-per-weight"):
        words = ["export", str(checkpoint), str(tmp_path / "out"), "--dry-run", option]
        refusal = CliRunner().invoke(main, [*words, "1"]).stderr
        least = re.search(r"takes ([\d.]+)( MB)?", refusal)
        assert least is not None
        result = CliRunner().invoke(main, [*words, least[1] + (least[2] or "").strip()])
        assert result.exit_code == 0, result.output


def test_bytes_go_where_they_lower_the_kl_most() -> None:
    four, eight = Precision(bits=4, block_size=32), Precision(bits=8, block_size=32)
    ways = {name: [Choice(four, 10, kl), Choice(eight, 20, 0.0)] for name, kl in (("a", 0.1), ("b", 0.3), ("c", 0.0))}
    assert [name for name, choice in choose(ways, 45).items() if choice.precision == eight] == ["b"]
    assert [name for name, choice in choose(ways, 50).items() if choice.precision == eight] == ["a", "b"]
    # All the same: the first ones get them, in every run.
    equal = {name: [Choice(four, 10, 0.0), Choice(four, 15, 0.0), Choice(eight, 20, 0.0)] for name in "abc"}
    assert [choice.bytes for choice in choose(equal, 40).values()] == [20, 10, 10]
