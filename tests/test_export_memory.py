"""An export that memory will not do for is refused in one line, whoever sets the limit."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from export.system import memory_room

MB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with 8000 MB available, where this process holds 500 MB and maps 2000 MB."""
    write(tmp_path, "proc/meminfo", f"MemTotal: 16000000 kB\nMemAvailable: {8000 * 1024} kB\n")
    write(tmp_path, "proc/self/status", f"Name:\tpython\nVmSize:\t{2000 * 1024} kB\nVmRSS:\t{500 * 1024} kB\n")
    write(tmp_path, "proc/self/limits", "Max address space         unlimited            unlimited            bytes\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_what_the_system_has(root: Path) -> None:
    room = memory_room(root)
    assert room is not None and (room.bytes, room.source) == (8500 * MB, "available")


def test_a_control_group_around_ours(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/work/job\n")
    write(root, "sys/fs/cgroup/work/job/memory.max", "max\n")
    write(root, "sys/fs/cgroup/work/job/memory.stat", f"anon {500 * MB}\n")
    write(root, "sys/fs/cgroup/work/memory.max", f"{4000 * MB}\n")
    write(root, "sys/fs/cgroup/work/memory.stat", f"anon {1500 * MB}\nfile {2500 * MB}\n")
    room = memory_room(root)
    assert room is not None and (room.bytes, room.source) == (3000 * MB, "left by the control group")


def test_a_control_group_of_the_first_version(root: Path) -> None:
    write(root, "proc/self/cgroup", "5:cpu:/job\n4:memory:/job\n")
    write(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", f"{1000 * MB}\n")
    write(root, "sys/fs/cgroup/memory/job/memory.stat", f"cache {300 * MB}\ntotal_rss {500 * MB}\n")
    room = memory_room(root)
    assert room is not None and room.bytes == 1000 * MB


def test_ulimit(root: Path) -> None:
    write(root, "proc/self/limits", f"Max address space         {3000 * MB}           unlimited            bytes\n")
    room = memory_room(root)
    assert room is not None and (room.bytes, room.source) == (1500 * MB, "left by ulimit -v")


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert memory_room(tmp_path) is None


def test_a_limit_too_small_gives_one_line(tmp_path: Path) -> None:
    limit_mb = 1000
    result = subprocess.run(
        [sys.executable, "-m", "phi_edge", "export", "tiny", str(tmp_path / "out"), "--quiet"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_mb * MB, limit_mb * MB)),
    )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert "memory" in line and "limit" in line
    assert not list(tmp_path.iterdir())
