"""Does our peak memory agree with the kernel's own account, on a program that uses a known amount?

python -m ci.bench.memory      prints the table of docs/lab.md; Linux, and root where it makes a control group

Each row is a process of its own that writes to so much anonymous memory and reads so much of a mapped file, with the
sampler of the agents running. VmHWM is the kernel's highest resident size of the process. The control group's peak also
counts pages of files that the process caused to be read, and no pages that it shares with programs outside; so a file
that is in the cache of another group already is missing there. The file is new in each row for that reason.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from runtimes.system.memory import MemorySampler, read_memory

MIB = 1 << 20
ROWS = ((0, 0), (512, 0), (0, 512), (512, 512), (1024, 128))  # MiB anonymous, MiB mapped
GROUPS = Path("/sys/fs/cgroup")


def use(anonymous_mib: int, mapped: Path | None) -> None:
    """The program: use the memory, and print what the sampler and the kernel say, in bytes."""
    before = read_memory()
    with MemorySampler() as sampler:
        block = bytearray(b"x") * (anonymous_mib * MIB)
        if mapped is not None:
            with mapped.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                sum(view[:: mmap.PAGESIZE])
        del block
    after, seen = read_memory(), sampler.use()
    assert before is not None and after is not None and seen is not None
    print(json.dumps({"before": before.high_water_bytes, "ours": seen.peak_bytes, "hwm": after.high_water_bytes}))


def measure(anonymous_mib: int, mapped_mib: int, folder: Path) -> list[str]:
    """One row of the table."""
    mapped = folder / f"{anonymous_mib}-{mapped_mib}"
    group, peak = _make_group()
    words = [sys.executable, "-m", "ci.bench.memory", str(anonymous_mib)]
    if mapped_mib:
        mapped.write_bytes(os.urandom(MIB) * mapped_mib)
        with mapped.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        words.append(str(mapped))
    try:
        entered = None if group is None else f"echo 0 > {group}/cgroup.procs && "
        command = ["sh", "-c", f'{entered or ""}exec "$@"', "sh", *words]
        seen = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        charged = None if peak is None else int(peak.read_text())
    finally:
        if group is not None:
            group.rmdir()
    known = (anonymous_mib + mapped_mib) * MIB + seen["before"]
    cells = [f"{number / 1e6:,.0f} MB" for number in (known, seen["ours"], seen["hwm"])]
    cells.append("" if charged is None else f"{charged / 1e6:,.0f} MB")
    return [f"{anonymous_mib} MiB", f"{mapped_mib} MiB", *cells, f"{seen['ours'] / known - 1:+.2%}"]


def _make_group() -> tuple[Path | None, Path | None]:
    """A new control group, and the file of its peak; None where there can be none."""
    places = ((GROUPS / "memory", "memory.max_usage_in_bytes"), (GROUPS, "memory.peak"))
    for parent, name in places:
        group = parent / f"phi-edge-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / name).exists():
            return group, group / name
        group.rmdir()
    return None, None


def main() -> None:
    """Print the table; with words, be the program."""
    if len(sys.argv) > 1:
        use(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
        return
    print("| anonymous | mapped file | known | ours | VmHWM | control group's peak | ours by known |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir=Path.cwd() / "build" if Path("build").is_dir() else None) as folder:
        for row in ROWS:
            print(f"| {' | '.join(measure(*row, Path(folder)))} |", flush=True)


if __name__ == "__main__":
    main()
