"""Memory of a model's file, once its weights are packed in the engine's own memory."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import pytest

from export.artifact import open_artifact
from runtimes.engines.onnx_engine import open_onnx
from runtimes.system.mapped import release, released

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's pages")


def resident_bytes(path: Path) -> int:
    """What this process has in memory of mappings of `path`."""
    found = re.findall(
        rf"^[0-9a-f]+-[0-9a-f]+ .* {re.escape(str(path))}$.*?^Rss: +(\d+) kB",
        Path("/proc/self/smaps").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert found, f"{path} is not mapped"
    return 1024 * sum(map(int, found))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Its name is one that a table of words would not hold."""
    path = tmp_path / "some model.onnx.data"
    path.write_bytes(bytes(range(256)) * 64)
    return path


def test_an_engine_keeps_no_pages_of_weights_that_it_has_packed(tiny_onnx: Path) -> None:
    artifact = open_artifact(tiny_onnx)
    engine = open_onnx(artifact, 1)
    (weights,) = (artifact.path(name) for name in artifact.manifest.files if name.endswith(".onnx.data"))
    assert resident_bytes(weights.resolve()) == 0
    engine.forward([3, 4, 5], 0)
    engine.close()


def test_what_is_released_is_read_again_from_the_file(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        whole = mapped[:]
        assert resident_bytes(file) == len(whole)
        with released(file.with_suffix("")):
            pass
        assert resident_bytes(file) == 0
        assert mapped[:] == whole


def test_what_was_written_stays(file: Path) -> None:
    """A private mapping's own pages are nowhere else."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[5000:5004] = b"mine"
        release(file)
        assert mapped[5000:5004] == b"mine"


def test_other_files_keep_theirs(file: Path, tmp_path: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        whole = mapped[:]
        release(tmp_path / "another.onnx")
        assert resident_bytes(file) == len(whole)
