"""`--max-bytes` and `--bits-per-weight`: more bits where they help, within the budget."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from export.checkpoint.open import Checkpoint
from export.errors import SpaceError
from export.pipeline import Progress, describe_job, export_model, resolve_judged
from export.request import ExportRequest
from export.scheme import Precision, Scheme
from export.texts import CALIBRATION
from export.weights.methods import budget
from export.weights.methods.budget import Choice, choose, sensitivities
from export.weights.work_folder import work_folder
from phi_edge.main import main

SCHEME = "uint4-b64-e8-weighted"
PADDING = 16_384  # between tensors, which begin at multiples of 256 bytes


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


def test_an_interrupted_budget_goes_on_to_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    """After Ctrl-C in a layer, with what was measured and what was written before."""

    class Interrupted(Progress):
        pieces = -1

        def step(self, what: str) -> None:
            self.pieces = 0 if what == "quantising" else -1

        def read(self, name: str, count: int) -> None:
            self.pieces += self.pieces >= 0
            if self.pieces > 0 and name.startswith("model.layers.1."):
                raise KeyboardInterrupt

    request = ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", scheme=SCHEME, bits_per_weight=7.5)
    with pytest.raises(KeyboardInterrupt):
        export_model(request, Interrupted())
    assert (tmp_path / "out.part" / "journal.jsonl").read_text().count("\n") > 1
    whole = export_model(replace(request, out=tmp_path / "whole")).manifest
    assert whole.scheme.exceptions
    assert export_model(request).manifest.digest() == whole.digest()


@pytest.mark.parametrize("scheme", [SCHEME, "int4-b64-e8"])
def test_a_budget_for_directml_counts_the_zero_points_that_matrices_share(
    checkpoint: Path, tmp_path: Path, scheme: str
) -> None:
    request = ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "made", target="windows-directml", scheme=scheme)
    limit = int(weights(export_model(replace(request, out=tmp_path / "plain")).folder) * 1.1)
    made = export_model(replace(request, max_bytes=limit))
    assert made.manifest.scheme.exceptions
    assert 0.9 * limit < weights(made.folder) < limit + PADDING


def test_a_budget_follows_the_calibration_text(checkpoint: Path, tmp_path: Path) -> None:
    """Not the held-out text, which judges the export: the user's own text decides, with a data-free scheme too."""
    chosen = []
    for name, sentence in (("one", "Turn off the lamp in the kitchen. "), ("other", "12 + 30 = 42; 7 x 8 = 56. ")):
        text = tmp_path / f"{name}.txt"
        text.write_text(sentence * 600, encoding="utf-8")
        request = ExportRequest(checkpoint=str(checkpoint), out=tmp_path / name, scheme="int4-b64", bits_per_weight=7.5)
        chosen.append(measured(replace(request, calibration=str(text))))
    assert chosen[0] != chosen[1]
    held_out = measured(replace(request, calibration=None))
    assert held_out == measured(replace(request, calibration=str(CALIBRATION)))


def measured(request: ExportRequest) -> dict[str, float]:
    """The sensitivities that an export keeps beside its journal, as it is stopped after them."""

    class Stopped(Progress):
        def step(self, what: str) -> None:
            if what.startswith("tracing"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(request, Stopped())
    kept: dict[str, float] = json.loads((work_folder(request.out) / "sensitivity.json").read_text())["kl"]
    shutil.rmtree(work_folder(request.out))
    return kept


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
    "no name": (["--calibration", ""], "--calibration is empty; give a text file, or leave it out"),
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


def test_the_dry_run_knows_what_a_budget_takes(tmp_path: Path) -> None:
    def planned(*options: str) -> float:
        words = ["export", "tiny", str(tmp_path / "out"), "--dry-run", *options]
        found = re.search(r"artifact +([\d.]+) MB", CliRunner().invoke(main, words).stdout)
        assert found is not None
        return float(found[1])

    assert planned() < planned("--max-bytes", "3MB") == 3.0 < planned("--max-bytes", "1GB") < 6


def test_what_was_measured_is_kept_for_an_export_that_goes_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", scheme=SCHEME, bits_per_weight=7.5)
    passes: list[Scheme] = []

    def counted(checkpoint: Checkpoint, scheme: Scheme, *rest: Any) -> dict[str, float]:
        passes.append(scheme)
        return sensitivities(checkpoint, scheme, *rest)

    monkeypatch.setattr(budget, "sensitivities", counted)

    class Stopped(Progress):
        def step(self, what: str) -> None:
            if what == "quantising":
                raise KeyboardInterrupt

    for fresh, count in ((False, 1), (False, 1), (True, 2)):
        with pytest.raises(KeyboardInterrupt):
            export_model(replace(request, fresh=fresh), Stopped())
        assert len(passes) == count
    kept = work_folder(request.out) / "sensitivity.json"
    for damaged in ("[]", '{"job": 1}'):
        kept.write_text(damaged)
        with pytest.raises(KeyboardInterrupt):
            export_model(request, Stopped())
    assert len(passes) == 4
    export_model(request)
    assert len(passes) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_too_little_disk_is_found_before_the_budget_is_measured(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    monkeypatch.setattr(budget, "sensitivities", lambda *_: pytest.fail("measured"))
    request = ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", scheme=SCHEME, bits_per_weight=7.5)
    with pytest.raises(SpaceError, match=r"needs 0\.\d\d GB of disk, 0\.00 GB are free; free some space"):
        export_model(request)
    assert list(tmp_path.iterdir()) == []


def test_another_text_starts_anew(checkpoint: Path, tmp_path: Path) -> None:
    """Also where it comes out of a pipe, which has no content to hash afterwards."""
    digests = []
    for sentence in ("Turn off the lamp. ", "Turn on the lamp. ", "Turn off the lamp. "):
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb"):
            with os.fdopen(writing, "w", encoding="utf-8") as text:
                text.write(sentence * 1500)
            request = ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", scheme=SCHEME)
            digests.append(describe_job(*resolve_judged(replace(request, calibration=f"/dev/fd/{reading}"))))
    assert digests[0] == digests[2] != digests[1]


def test_a_short_text_of_the_user_is_a_note(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("Turn off the lamp in the kitchen. " * 100, encoding="utf-8")
    request = ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "out", scheme=SCHEME, calibration=str(text))
    (note,) = export_model(request).manifest.notes
    assert re.fullmatch(r"calibrated on own\.txt: \d blocks of 512 tokens of 32 that a longer text gives", note)
