"""Where results go: links, devices, pipes, mounts, full disks, names that no file can have, folders of others."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from export.artifact import open_artifact, verify
from export.errors import SpaceError
from export.verify.proof import Proof
from export.weights.work_folder import INSIDE, take_over
from fakes.measurement import fake_measurement
from phi_edge import files
from phi_edge.main import main

BUDGETS = "[[budget]]\nmax_ttft_s = 100\n"


@pytest.fixture(autouse=True)
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export is not run before it is sealed: that takes longer than the export of the tiny model."""
    monkeypatch.setattr("phi_edge.proof.ChildProver.run", lambda self, artifact: Proof([]))


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert all(part in line for part in parts), line


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A folder with a measurement and budgets that it keeps."""
    (tmp_path / "m.json").write_text(fake_measurement().to_json())
    (tmp_path / "b.toml").write_text(BUDGETS)
    return tmp_path


@pytest.fixture(params=["gate --junit", "report --json", "report --html"])
def write(request: pytest.FixtureRequest, measured: Path) -> Callable[[Path], Result]:
    """Each verb that writes a file without a device."""
    verb, option = request.param.split()
    words = [verb, str(measured / "m.json"), *(["--budgets", str(measured / "b.toml")] if verb == "gate" else [])]
    return lambda out: call(*words, option, str(out))


def test_a_link_is_followed(write: Callable[[Path], Result], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link", tmp_path / "elsewhere" / "out"
    link.symlink_to(target)
    for _ in range(2):  # first it dangles
        assert write(link).exit_code == 0
        assert link.is_symlink() and target.stat().st_size > 200
        assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_pipe_gets_it_all(write: Callable[[Path], Result], tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    assert write(pipe).exit_code == 0
    reader.join(30)
    assert len(read[0]) > 200 and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_stays_a_device(write: Callable[[Path], Result], tmp_path: Path) -> None:
    assert write(Path("/dev/null")).exit_code == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    null = tmp_path / "null"
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        return  # not root, who alone could have made it a file
    assert write(null).exit_code == 0
    assert stat.S_ISCHR(null.stat().st_mode)


def test_a_full_device_is_reported(write: Callable[[Path], Result]) -> None:
    refused(write(Path("/dev/full")), "/dev/full: cannot be written (No space left on device)")


def test_a_file_that_cannot_be_renamed_over_is_overwritten(
    write: Callable[[Path], Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one file that is mounted into a container."""

    def busy(self: Path, target: Path) -> Path:
        raise OSError(16, "Device or resource busy")

    out = tmp_path / "out"
    out.write_text("old")
    monkeypatch.setattr(Path, "replace", busy)
    assert write(out).exit_code == 0
    assert len(out.read_bytes()) > 200
    assert not list(tmp_path.glob(".phi-edge*"))


def test_its_permissions_are_kept(write: Callable[[Path], Result], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("old")
    out.chmod(0o640)
    assert write(out).exit_code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o640


def test_a_name_of_255_characters_is_written(write: Callable[[Path], Result], tmp_path: Path) -> None:
    assert write(tmp_path / ("x" * 255)).exit_code == 0


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("x" * 300, "File name too long"),
        ("nowhere/out", "its folder does not exist"),
        ("m.json/out", "its folder does not exist"),
        (".", "is a folder"),
        ("loop", "cannot be written (Too many levels of symbolic links)"),
        ("/proc/x", "cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written(write: Callable[[Path], Result], tmp_path: Path, out: str, said: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    refused(write(tmp_path / out), said)
    assert not list(tmp_path.glob(".phi-edge*"))


@contextlib.contextmanager
def read_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder in which nobody, root included, may make a file."""

    def denied(target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(files, "_aside", denied)
        yield


def test_the_place_is_tried_before_the_work(tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("measured, and for nothing")

    monkeypatch.setattr("phi_edge.benching.measure", never)
    with read_only(monkeypatch):
        refused(call("bench", str(tiny_onnx), "--out", str(tmp_path / "m.json")), "m.json: cannot be written")
        refused(
            call("check", str(tiny_onnx), "--against", "tiny", "--json", str(tmp_path / "c.json")), "cannot be written"
        )


@pytest.mark.parametrize(
    "words",
    [
        "report m.json --json m.json",
        "report m.json --html ./m.json",
        "gate m.json --budgets b.toml --junit b.toml",
        "gate m.json --junit budgets.toml",
        "score model --questions q.jsonl --json q.jsonl",
        "check model --against tiny --json model/manifest.json",
        "diff model model --json model/manifest.json",
    ],
)
def test_what_is_read_is_not_overwritten(measured: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    (measured / "model").mkdir()
    (measured / "model" / "manifest.json").write_text("{}")
    (measured / "budgets.toml").write_text("[[budget]]\nmax_kl = 1\n")
    (measured / "q.jsonl").write_text('{"question": "Is the lamp on?", "answers": ["yes"]}\n')
    monkeypatch.chdir(measured)
    written = {path: path.read_bytes() for path in measured.rglob("*") if path.is_file()}
    refused(call(*words.split()), "is read by this command and would be overwritten; give another file")
    assert {path: path.read_bytes() for path in measured.rglob("*") if path.is_file()} == written


@pytest.mark.parametrize("words", [["--help"], ["report", "m.json", "--json", "-"]])
def test_a_full_stdout_is_one_line(measured: Path, words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "phi_edge", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=measured,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == ["Error: the output cannot be written (No space left on device)"]


@pytest.mark.parametrize("words", ["report m.json --json -", "--help", "report no.json 2>&1", "--help 2>&1"])
def test_a_reader_that_leaves_early_is_no_missed_limit(measured: Path, words: str) -> None:
    command = f"( sleep 0.2; {sys.executable} -P -m phi_edge {words} ) | true; echo ${{PIPESTATUS[0]}}"
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # so that Python's own flush at the end fails once more
    done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=measured, timeout=60, env=buffered)
    assert done.stdout == b"2\n" and b"Traceback" not in done.stderr


def export(out: Path | str, folder: Path | None = None) -> Result:
    """An export of the tiny model without a budget of time: its float form takes a second."""
    with contextlib.chdir(folder) if folder is not None else contextlib.nullcontext():
        return call("export", "tiny", str(out), "--scheme", "fp32", "--quiet")


def whole(out: Path) -> bool:
    artifact = open_artifact(out)
    verify(artifact)
    return not artifact.strangers()


@pytest.mark.parametrize("kind", [".", "link", "dangling", "empty", "deep"])
def test_an_export_to_a_place_of_any_kind(tmp_path: Path, kind: str) -> None:
    real, out = tmp_path / "real", tmp_path / "out"
    if kind in (".", "link"):
        real.mkdir()
    if kind in ("link", "dangling"):
        out.symlink_to(real)
    if kind == "empty":
        out.mkdir()
    if kind == "deep":
        out = tmp_path / "a" / "b" / "c"
    result = export(".", real) if kind == "." else export(out)
    assert result.exit_code == 0, result.output
    assert whole(real if kind == "." else out)
    assert out.is_symlink() == (kind in ("link", "dangling"))
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob(INSIDE))


def test_an_export_into_a_folder_on_another_file_system(tmp_path: Path) -> None:
    """As a mount point: nothing is made beside it, and it is never removed or renamed."""
    out = tmp_path / "mounted"
    out.mkdir()
    inode = out.stat().st_ino
    tmp_path.chmod(0o555)
    try:
        assert export(out).exit_code == 0
    finally:
        tmp_path.chmod(0o755)
    assert whole(out) and out.stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["mounted"]


@pytest.mark.parametrize("kind", ["folder", "file", "link", "lock"])
def test_a_work_folder_that_is_not_ours_is_left_alone(tmp_path: Path, kind: str) -> None:
    work, mine = tmp_path / "out.part", tmp_path / "mine"
    mine.mkdir()
    (mine / "precious").write_text("mine")
    if kind == "folder":
        mine.rename(work)
    elif kind == "file":
        work.write_text("mine")
    elif kind == "link":
        work.symlink_to(mine)
    else:
        (mine / "lock").write_text("")
        mine.rename(work)
    before = sorted((path.name, path.read_bytes() if path.is_file() else b"") for path in tmp_path.rglob("*"))
    refused(export(tmp_path / "out"), "out.part: is in the way", "rename it, or give another OUT")
    assert before == sorted((path.name, path.read_bytes() if path.is_file() else b"") for path in tmp_path.rglob("*"))


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out.part").mkdir()
    take_over(tmp_path / "out.part")
    take_over(tmp_path / "out.part")
    (tmp_path / "out.part" / "lock").write_text("somebody's")
    with pytest.raises(SpaceError, match="is in the way"):
        take_over(tmp_path / "out.part")


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("/", "is not empty"),
        ("taken", "is not empty"),
        ("file", "is a file; give a new folder"),
        ("file/out", "is a file, and"),
        ("x" * 300, "File name too long"),
        ("/proc/out", "/proc"),  # root gets as far as making the folder
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_an_export_that_has_no_place(tmp_path: Path, out: str, said: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    refused(export(tmp_path / out), said)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "loop", "mine", "taken"]


@pytest.mark.parametrize("moment", ["seal", "discard", "move"])
@pytest.mark.parametrize("there", [False, True])
def test_an_interrupt_at_the_end_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, there: bool
) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            f"export.pipeline.{moment}" if moment != "move" else "export.weights.work_folder.shutil.move", stop
        )
        interrupted = export(out)
        if moment == "move" and not there:
            assert interrupted.exit_code == 0  # it is renamed, not moved
            return
        assert (interrupted.exit_code, interrupted.stderr) == (130, "Interrupted\n")
    assert export(out).exit_code == 0
    assert whole(out) and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("out", ["x" * 300, "nowhere/out", "m.json/out", "/proc/out"])
def test_a_bundle_that_has_no_place(tiny_onnx: Path, measured: Path, out: str) -> None:
    refused(call("bundle", str(tiny_onnx), str(measured / out), "--for", "raspberry-pi"))
