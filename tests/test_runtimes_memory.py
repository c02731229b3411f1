"""Peak memory by its definition, from files like the kernel's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runtimes.system import memory
from runtimes.system.memory import STATUS, MemorySample, MemorySampler, PeakMemory, read_memory, read_status

needs_linux = pytest.mark.skipif(not STATUS.exists(), reason="needs /proc (Linux)")


def write(path: Path, **kib: int) -> None:
    path.write_text("Name:\tpython\n" + "".join(f"{name}:\t{value:8d} kB\n" for name, value in kib.items()))


def test_swap_counts_where_the_high_water_mark_misses_it(tmp_path: Path) -> None:
    status = tmp_path / "status"
    peak = PeakMemory(status)
    write(status, VmHWM=900, VmRSS=800, RssAnon=500, RssFile=300, VmSwap=0)
    peak.sample()
    write(status, VmHWM=900, VmRSS=600, RssAnon=300, RssFile=300, VmSwap=500)
    peak.sample()
    write(status, VmHWM=900, VmRSS=100, RssAnon=50, RssFile=50, VmSwap=0)
    peak.sample()
    use = peak.use()
    assert use is not None
    assert (use.peak_bytes, use.anonymous_bytes, use.file_bytes, use.swap_bytes) == tuple(
        kib * 1024 for kib in (1100, 300, 300, 500)
    )


def test_a_peak_between_samples_is_in_the_high_water_mark(tmp_path: Path) -> None:
    write(tmp_path / "status", VmHWM=5000, VmRSS=100, RssAnon=50, RssFile=50, VmSwap=0)
    peak = PeakMemory(tmp_path / "status")
    peak.sample()
    use = peak.use()
    assert use is not None and use.peak_bytes == 5000 * 1024


def test_what_is_not_reported_is_none(tmp_path: Path) -> None:
    assert read_status(tmp_path / "absent") is None
    write(tmp_path / "status", VmRSS=100)
    assert read_status(tmp_path / "status") is None
    peak = PeakMemory(tmp_path / "absent")
    peak.sample()
    assert peak.use() is None


@needs_linux
def test_the_sampler_sees_a_block_that_comes_and_goes() -> None:
    before = read_memory()
    assert before is not None
    with MemorySampler(interval_s=0.005) as sampler:
        block = bytearray(b"x") * (256 << 20)
        time.sleep(0.05)
        del block
    use = sampler.use()
    assert use is not None and use.peak_bytes is not None
    assert use.peak_bytes >= before.resident_bytes + (200 << 20)


def test_windows_peaks_are_each_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [windows(900, 500, 300, 70, 1), windows(950, 400, 310, 20, 9), windows(950, 300, 320)]
    monkeypatch.setattr(memory, "open_reader", lambda status: lambda: samples.pop(0))
    peak = PeakMemory()
    for _ in range(3):
        peak.sample()
    use = peak.use()
    assert use is not None
    assert (use.peak_bytes, use.committed_bytes) == (950, 320)
    assert (use.gpu_bytes, use.gpu_shared_bytes) == (70, 9)
    assert (use.anonymous_bytes, use.file_bytes, use.swap_bytes) == (None, None, None)


def windows(
    peak: int, resident: int, committed: int, gpu: int | None = None, shared: int | None = None
) -> MemorySample:
    return MemorySample(
        high_water_bytes=peak,
        resident_bytes=resident,
        committed_bytes=committed,
        gpu_bytes=gpu,
        gpu_shared_bytes=shared,
    )
