"""An interrupted export goes on where it stopped, and gives the bytes of an undisturbed one."""

from __future__ import annotations

import functools
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from export.artifact import Artifact, Format, open_artifact, verify
from export.checkpoint.shards import StoredTensor
from export.errors import ArtifactError, SpaceError
from export.pipeline import Progress, export_model
from export.request import ExportRequest
from export.weights.journal import Journal
from export.weights.scratch import Scratch
from fakes.killed import export_until, journal_lines, never

LAYERS = 4
CONTEXT = 64  # within the window: with branches in its attention a program takes twice as long to make


@pytest.fixture(scope="module")
def checkpoints(random_checkpoint: Callable[..., Path]) -> dict[Format, Path]:
    """The model for ExecuTorch has fewer layers: each export lowers all of them again."""
    return {"onnx": random_checkpoint(num_hidden_layers=LAYERS), "executorch": random_checkpoint(num_hidden_layers=2)}


@pytest.fixture(scope="module")
def checkpoint(checkpoints: dict[Format, Path]) -> Path:
    return checkpoints["onnx"]


@pytest.fixture(scope="module")
def undisturbed(checkpoints: dict[Format, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Format, Artifact]:
    out = tmp_path_factory.mktemp("undisturbed")
    return {format: export_model(request(source, out / format, format)) for format, source in checkpoints.items()}


def request(checkpoint: Path, out: Path, format: Format = "onnx", fresh: bool = False) -> ExportRequest:
    return ExportRequest(
        checkpoint=str(checkpoint), out=out, format=format, scheme="int4-b32", context_tokens=CONTEXT, fresh=fresh
    )


class InterruptedAt(Progress):
    """Ctrl-C at the nth piece of a tensor."""

    def __init__(self, piece: int) -> None:
        self.left = piece

    def read(self, name: str, count: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(checkpoint: Path, tmp_path: Path) -> Callable[[int], Path]:
    """An export interrupted at a piece; -> its OUT, which has OUT.part beside it."""

    def make(piece: int) -> Path:
        with pytest.raises(KeyboardInterrupt):
            export_model(request(checkpoint, tmp_path / "out"), InterruptedAt(piece))
        assert not (tmp_path / "out").exists()
        return tmp_path / "out"

    return make


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors whose rows are read from now on."""
    names: list[str] = []
    read_rows = StoredTensor.read_rows

    def counted(self: StoredTensor, start: int, stop: int, scratch: Scratch | None = None) -> object:
        names.append(self.name)
        return read_rows(self, start, stop, scratch)

    monkeypatch.setattr(StoredTensor, "read_rows", counted)
    return names


def same(artifact: Artifact, other: Artifact) -> bool:
    verify(artifact)
    return artifact.manifest.digest() == other.manifest.digest()


def test_goes_on_without_reading_finished_layers_again(
    checkpoint: Path,
    undisturbed: dict[Format, Artifact],
    interrupted: Callable[[int], Path],
    rows_read: list[str],
) -> None:
    out = interrupted(20)  # in the third layer
    rows_read.clear()
    assert same(export_model(request(checkpoint, out)), undisturbed["onnx"])
    assert not any(name.startswith(("model.layers.0.", "model.embed")) for name in rows_read)
    assert any(name.startswith(f"model.layers.{LAYERS - 1}.") for name in rows_read)
    assert not out.with_name("out.part").exists()


def test_a_flipped_bit_is_found_and_redone(
    checkpoint: Path,
    undisturbed: dict[Format, Artifact],
    interrupted: Callable[[int], Path],
    rows_read: list[str],
) -> None:
    out = interrupted(20)
    weights = out.with_name("out.part") / "artifact" / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 3] ^= 0x10
    weights.write_bytes(data)
    rows_read.clear()
    assert same(export_model(request(checkpoint, out)), undisturbed["onnx"])


def test_a_line_cut_off_in_the_journal(
    checkpoint: Path, undisturbed: dict[Format, Artifact], interrupted: Callable[[int], Path]
) -> None:
    out = interrupted(20)
    journal = out.with_name("out.part") / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    assert same(export_model(request(checkpoint, out)), undisturbed["onnx"])


def test_fresh_starts_anew(
    checkpoint: Path,
    undisturbed: dict[Format, Artifact],
    interrupted: Callable[[int], Path],
    rows_read: list[str],
) -> None:
    out = interrupted(20)
    rows_read.clear()
    assert same(export_model(request(checkpoint, out, fresh=True)), undisturbed["onnx"])
    assert "model.embed_tokens.weight" in rows_read


def test_other_options_start_anew(
    checkpoint: Path, interrupted: Callable[[int], Path], tmp_path: Path, rows_read: list[str]
) -> None:
    """Of the first export's files, which are longer and one more, nothing is left."""
    out, other = interrupted(20), ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "other", scheme="int4-b64")
    (begun,) = tmp_path.glob("out.part/artifact/*.data")
    shutil.copyfile(begun, begun.with_name("model.onnx.data.1"))
    rows_read.clear()
    artifact = export_model(replace(other, out=out))
    assert artifact.manifest.scheme.name == "int4-b64"
    assert "model.embed_tokens.weight" in rows_read
    alone = export_model(other)
    assert same(artifact, alone)
    assert {path.name for path in out.iterdir()} == {path.name for path in alone.folder.iterdir()}


def test_killed_between_rename_and_seal(
    checkpoint: Path,
    undisturbed: dict[Format, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows_read: list[str],
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("export.pipeline.seal", killed)
        export_model(request(checkpoint, tmp_path / "out"))
    assert (tmp_path / "out").is_dir()
    rows_read.clear()
    assert same(export_model(request(checkpoint, tmp_path / "out")), undisturbed["onnx"])
    assert not rows_read


@pytest.mark.parametrize("lock", [None, ""])
def test_killed_before_the_lock_was_written(
    checkpoint: Path, undisturbed: dict[Format, Artifact], tmp_path: Path, lock: str | None
) -> None:
    part = tmp_path / "out.part"
    part.mkdir()
    if lock is not None:
        (part / "lock").write_text(lock)
    assert same(export_model(request(checkpoint, tmp_path / "out")), undisturbed["onnx"])
    assert not part.exists()


def test_two_at_once_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "out.part", "another"), pytest.raises(SpaceError, match="another export"):
        export_model(request(checkpoint, tmp_path / "out"))


@pytest.mark.parametrize(("format", "lines"), [("onnx", range(7)), ("executorch", (2, 3))])
def test_killed_at_many_moments(
    checkpoints: dict[Format, Path],
    undisturbed: dict[Format, Artifact],
    tmp_path: Path,
    format: Format,
    lines: Sequence[int],
) -> None:
    """At each of these numbers of lines in the journal, and at the end: no folder is taken for an artifact before it is
    whole, and the next export goes on."""
    out, part = tmp_path / "out", tmp_path / "out.part"
    words = [str(checkpoints[format]), str(out), "--format", format, "--scheme", "int4-b32"]
    words += ["--context", str(CONTEXT)]
    chance, killed = random.Random(1), 0
    moments = [functools.partial(at_work, part, count, chance.uniform(0, 0.05)) for count in lines]
    if format == "onnx":
        moments.append(functools.partial(out.exists))
    for reached in moments:
        code = export_until(words, reached)
        killed += code is None
        whole = [folder for folder in tmp_path.iterdir() if is_whole(folder)]
        assert whole in ([], [out]) and (code is None or whole)
        if whole:  # it was sealed before the moment came: the next one begins again
            assert same(open_artifact(out), undisturbed[format])
            shutil.rmtree(out)
    assert killed >= len(lines) // 2
    assert export_until(words, never) == 0
    assert same(open_artifact(out), undisturbed[format])


def is_whole(folder: Path) -> bool:
    try:
        verify(open_artifact(folder))
    except ArtifactError:
        return False
    return True


@pytest.mark.parametrize("scheme", ["uint4-b32-e8-weighted", "uint4-b32-e8-gptq"])
def test_a_calibrated_export_goes_on_after_kills(checkpoint: Path, tmp_path: Path, scheme: str) -> None:
    expected = export_model(ExportRequest(checkpoint=str(checkpoint), out=tmp_path / "expected", scheme=scheme))
    out, part = tmp_path / "out", tmp_path / "out.part"
    words = [str(checkpoint), str(out), "--scheme", scheme]
    killed = [export_until(words, functools.partial(at_work, part, lines, 0.01)) is None for lines in (2, LAYERS)]
    assert killed == [True, True]
    assert export_until(words, never) == 0
    assert same(open_artifact(out), expected)


def at_work(part: Path, lines: int, delay_s: float) -> bool:
    """Whether so many lines are in the journal; if so, this waits for a moment between two of them."""
    if not part.is_dir() or journal_lines(part) < lines:
        return False
    time.sleep(delay_s)
    return True


def test_a_full_disk_loses_nothing(
    checkpoint: Path,
    undisturbed: dict[Format, Artifact],
    interrupted: Callable[[int], Path],
    rows_read: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = interrupted(20)
    with monkeypatch.context() as patch, pytest.raises(SpaceError, match=r"disk.*the same command goes on there"):
        patch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
        export_model(request(checkpoint, out))
    rows_read.clear()
    assert same(export_model(request(checkpoint, out)), undisturbed["onnx"])
    assert not any(name.startswith("model.layers.0.") for name in rows_read)
