"""A lab device without hardware: a real sshd on 127.0.0.1 in front of the emulated Raspberry Pi 5.

The wire, the client, the keys and the aarch64 libraries are real; the shell's small programs (cat, mv, sha256sum) are
this machine's. `phi-edge` reaches it by a lab file like any other board.

    PYTHONPATH=.:tests python -m fakes.pi FOLDER    # until Ctrl-C; the lab file is FOLDER/lab.toml, the device pi5
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from fakes.lab_file import lab_file
from fakes.sshd import SSHD, LocalSshd, all_pids
from runtimes.system.cache_folder import cache_folder

REPOSITORY = Path(__file__).parents[2]
NAME = "pi5"
UNUSED_S = 2 * 24 * 3600.0
# A disk of its own to fill would need root.
FULL_DISK = """#!/bin/sh
/usr/bin/dd "$@" count=1 iflag=fullblock 2>/dev/null
echo "dd: error writing: No space left on device" >&2
exit 1
"""

# The board's own, but for what a test changes.
VCGENCMD = """#!/bin/sh
case $1 in
get_throttled) echo "throttled=$(cat "{firmware}")" ;;
*) exec "{pi}/bin/vcgencmd" "$@" ;;
esac
"""


def missing() -> str | None:
    """What this machine lacks to emulate a Pi; None if nothing."""
    lacking = [name for name in ("qemu-aarch64-static", SSHD, "ssh") if shutil.which(name) is None]
    return f"needs {', '.join(lacking)}: ci/install_system.sh" if lacking else None


def pi_folder() -> Path:
    """Where the emulated Pi is kept between runs; another checkout's, made in another way, is kept beside it."""
    cache = cache_folder()
    made_of = [REPOSITORY / name for name in ("tests/fakes/emulate_pi5.sh", "constraints.txt")]
    return cache / f"pi5-{hashlib.sha256(b''.join(path.read_bytes() for path in made_of)).hexdigest()[:8]}"


def build_pi() -> Path:
    """Build it unless it is there; a minute the first time."""
    folder, environment = pi_folder(), os.environ | {"PYTHON": sys.executable}
    subprocess.run(
        [str(REPOSITORY / "tests/fakes/emulate_pi5.sh"), str(folder)], check=True, timeout=600, env=environment
    )
    (folder / "used").touch()
    for other in folder.parent.glob("pi5-" + "[0-9a-f]" * 8):
        remove_unused(other)
    return folder


def remove_unused(folder: Path) -> None:
    """Remove an emulated Pi (200 to 600 MB) that no test has used for two days, unless another run builds it now."""
    used = folder / "used" if (folder / "used").exists() else folder / "version"
    if not used.exists() or time.time() - used.stat().st_mtime < UNUSED_S:
        return
    with folder.with_name(f"{folder.name}.lock").open("a") as lock, contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def build_executorch(pi: Path) -> Path:
    """The board's Python with ExecuTorch; 440 MB are downloaded the first time."""
    script, environment = REPOSITORY / "tests/fakes/emulate_pi5_executorch.sh", os.environ | {"PYTHON": sys.executable}
    subprocess.run([str(script), str(pi)], check=True, timeout=1200, env=environment)
    return pi / "bin/python3-executorch"


class EmulatedPi(LocalSshd):
    """`with EmulatedPi(folder, pi) as board: ... --lab board.lab --device pi5`. Its keys are in `folder`."""

    def __init__(self, folder: Path, pi: Path) -> None:
        self._programs = folder / "programs"  # before the machine's own
        path = f"{self._programs}:{pi}/bin:/usr/local/bin:/usr/bin:/bin"
        super().__init__(folder, NAME, environment={"PATH": path})
        self.pi = pi
        self.lab = folder / "lab.toml"
        self.cache = folder / "Jürgen's 模型" / "cache on the board"
        self.firmware = folder / "throttled"  # what `vcgencmd get_throttled` says

    def __enter__(self) -> EmulatedPi:
        self.prepare()
        self._programs.mkdir()
        self.firmware.write_text("0x0\n")
        vcgencmd = self._programs / "vcgencmd"
        vcgencmd.write_text(VCGENCMD.format(firmware=self.firmware, pi=self.pi))
        vcgencmd.chmod(0o755)
        self.lab.write_text(self.row())
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def own_python(self, folder: Path) -> Path:
        """A Python of this board whose /proc is `folder`/root/proc: another run of the tests has the same Pi at the
        same time, and must not see what a test changes there."""
        shutil.copytree(self.pi / "bin", folder / "bin", symlinks=True)
        shutil.copytree(self.pi / "root" / "proc", folder / "root" / "proc")
        for shared in (self.pi / "root").iterdir():
            if shared.name != "proc":
                (folder / "root" / shared.name).symlink_to(shared)
        (folder / "lib").symlink_to("root/usr/lib")
        return folder / "bin/python3-onnx"

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """The program that writes pushed files finds room for one more block."""
        dd = self._programs / "dd"
        dd.write_text(FULL_DISK)
        dd.chmod(0o755)
        try:
            yield
        finally:
            dd.unlink()

    def agents(self) -> list[int]:
        """The agents that run on this board now; another test run has a board of its own."""
        ours = str(self.cache).encode()
        running = [pid for pid in all_pids() if b"runtimes.agent" in _words(pid) and b"qemu" in _words(pid)[0]]
        return [pid for pid in running if ours in _read(pid, "cmdline") + _read(pid, "environ")]

    def row(self, **changes: str | None) -> str:
        """The lab file, with other or further keys; None leaves one out."""
        keys = {
            "transport": "ssh",
            "host": NAME,
            "config": str(self.config),
            "cache": str(self.cache),
            "python": str(self.pi / "bin/python3-onnx"),
        } | changes
        return lab_file(NAME, keys)


def _words(pid: int) -> list[bytes]:
    return _read(pid, "cmdline").split(b"\0")


def _read(pid: int, name: str) -> bytes:
    try:
        return (Path("/proc") / str(pid) / name).read_bytes()
    except OSError:  # it has ended
        return b""


def main() -> None:
    """Keep a board, for a person or a long check."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    with contextlib.suppress(KeyboardInterrupt), EmulatedPi(folder, build_pi()) as board:
        print(board.lab, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
