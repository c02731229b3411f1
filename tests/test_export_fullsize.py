"""Exports at full size, killed, short of memory and short of disk.

    PHI_EDGE_FULLSIZE=CHECKPOINT python -m pytest tests/test_export_fullsize.py

CHECKPOINT is a Phi-3-mini; a synthetic one is enough (ci/bench/export.py makes such). Ten minutes, 5 GB of disk; the
full disk needs root (a small tmpfs is mounted).
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ci.bench.adapter import make_adapter, own_peak_bytes
from export.artifact import Artifact, open_artifact, verify

FULLSIZE = os.environ.get("PHI_EDGE_FULLSIZE", "")
GB = 1 << 30
pytestmark = [
    pytest.mark.fullsize,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not FULLSIZE, reason="needs PHI_EDGE_FULLSIZE, a checkpoint of full size"),
]


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "phi_edge", "export", FULLSIZE, str(out), "--quiet"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, float]]:
    """An export's digest, and the seconds it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    start = time.monotonic()
    subprocess.run(command(out), check=True)
    yield open_artifact(out).manifest.digest(), time.monotonic() - start
    shutil.rmtree(out)


def digest(out: Path) -> str:
    artifact: Artifact = open_artifact(out)
    verify(artifact)
    return artifact.manifest.digest()


def test_ten_kills(undisturbed: tuple[str, float], tmp_path: Path) -> None:
    expected, whole_s = undisturbed
    moments = random.Random(1)
    for _ in range(10):
        out = tmp_path / "out"
        process = subprocess.Popen(command(out), start_new_session=True)
        time.sleep(whole_s * moments.uniform(0.1, 0.9))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "manifest.json").exists()
        subprocess.run(command(out), check=True)
        assert digest(out) == expected
        shutil.rmtree(out)


@pytest.mark.parametrize("limit_gb", [4, 1])
def test_a_memory_limit(undisturbed: tuple[str, float], tmp_path: Path, limit_gb: int) -> None:
    result = subprocess.run(
        command(tmp_path / "out"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_gb * GB, limit_gb * GB)),
    )
    if limit_gb == 4:
        assert result.returncode == 0, result.stderr
        assert digest(tmp_path / "out") == undisturbed[0]
        shutil.rmtree(tmp_path / "out")
    else:
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
        assert "memory" in result.stderr


def test_an_adapter_takes_no_memory(tmp_path: Path) -> None:
    make_adapter(FULLSIZE, tmp_path / "adapter", 16)
    plain = own_peak_bytes(command(tmp_path / "plain"))
    shutil.rmtree(tmp_path / "plain")
    merged = own_peak_bytes([*command(tmp_path / "merged"), "--adapter", str(tmp_path / "adapter")])
    assert merged - plain < 100e6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 2.5 GB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_in_the_middle(undisturbed: tuple[str, float], small_disk: Path) -> None:
    out = small_disk / "out"
    process = subprocess.Popen(command(out), stderr=subprocess.PIPE, text=True)
    until(lambda: used(small_disk) > 0.3 * GB, undisturbed[1])
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, int(1.3 * GB))
    _, said = process.communicate()
    (line,) = said.strip().splitlines()
    assert process.returncode == 2 and "the same command goes on" in line, said
    again = subprocess.run(command(out), capture_output=True, text=True)
    assert again.returncode == 2 and "free" in again.stderr  # still no room: refused, and nothing is lost
    filler.unlink()
    start = time.monotonic()
    subprocess.run(command(out), check=True)
    assert time.monotonic() - start < undisturbed[1]
    assert digest(out) == undisturbed[0]


def used(folder: Path) -> int:
    return shutil.disk_usage(folder).used


def until(holds: Callable[[], bool], limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    while not holds() and time.monotonic() < end_s:
        time.sleep(0.05)
    assert holds()
