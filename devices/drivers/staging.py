"""Bring files to a device so that what is there is complete: by hash, to `.part`, verified there, then renamed.

A folder is named by its artifact's digest, and its manifest comes last, as in an export: a folder with a manifest is
complete. devices.transports.files looks at files and renames them there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from devices.drivers.driver import Say
from devices.errors import DeviceError
from devices.transports.files import Files
from devices.transports.host import Host
from export.artifact import MANIFEST, Artifact, File, sha256_file
from runtimes.errors import ConnectionLostError, RuntimesError, TransportError
from runtimes.system.size import size_text

ATTEMPTS = 3  # of a push whose connection breaks; each continues where the last one ended
WHOLE_ATTEMPTS = 2  # of a push that arrived, but not as it was sent
WATCH_S = 10.0
WATCHED_BYTES = 8_000_000  # a smaller file is there before anybody has read how much of it is
SPARE_BYTES = 100_000_000  # that must stay free on the device


def stage_artifact(host: Host, artifact: Artifact, cache: str, say: Say) -> str:
    """Push what is missing of the artifact to <cache>/<digest>/ and return that folder.

    Raises TransportError, and DeviceError where the disk is too small.
    """
    files, timeouts = host.files, host.timeouts
    folder = f"{cache}/{artifact.manifest.digest()}"
    files.make_folder(folder)
    names = [*artifact.manifest.files, MANIFEST]
    there = dict(zip(names, files.exist(folder, names), strict=True))
    if there[MANIFEST] and all(there.values()):
        return folder
    missing = {name: file for name, file in artifact.manifest.files.items() if not there[name]}
    size = sum(file.bytes for file in missing.values())
    _check_room(host, folder, size)
    sent = 0
    for name, file in missing.items():
        push_file(host, artifact.folder / name, f"{folder}/{name}", file, say, Batch(sent, size))
        sent += file.bytes
    files.sync(deadline_s=timeouts.transfer_s(size))  # the files are on the disk before the manifest is
    manifest = artifact.folder / MANIFEST
    push_file(host, manifest, f"{folder}/{MANIFEST}", describe(manifest), say)
    return folder


def describe(path: Path) -> File:
    """Size and hash of a file of this machine."""
    return File(bytes=path.stat().st_size, sha256=sha256_file(path))


@dataclass(frozen=True)
class Batch:
    """Where a file is among several, in bytes."""

    sent: int  # before it
    total: int

    def text(self, name: str, there: int) -> str:
        """What is being done, for people; `there` bytes of the file have arrived."""
        return f"pushing {name} ({size_text(self.sent + there)} of {size_text(self.total)})"


def push_file(host: Host, local: Path, remote: str, file: File, say: Say, batch: Batch | None = None) -> None:
    """Push one file: to `.part`, continued where an earlier push broke, verified on the device, renamed."""
    files, part, name = host.files, remote + ".part", PurePosixPath(remote).name
    batch = batch or Batch(0, file.bytes)
    files.make_folder(str(PurePosixPath(remote).parent))
    for _ in range(WHOLE_ATTEMPTS):
        say(batch.text(name, 0))
        with _watched(files, part, file, lambda there: say(batch.text(name, there))):
            _push_on(host, local, part, file, say)
        if files.verify_and_rename(part, remote, file.sha256, deadline_s=host.timeouts.transfer_s(file.bytes)):
            return
        # What an earlier push left was not the beginning of this file, or another client pushes it too.
    raise TransportError(
        f"{remote} arrives damaged: its sha256 on the device was wrong {WHOLE_ATTEMPTS} times; check its disk, and "
        "that no other client pushes at the same time"
    )


@contextlib.contextmanager
def _watched(files: Files, part: str, file: File, tell: Callable[[int], None]) -> Iterator[None]:
    """Meanwhile, look from time to time how much of a large file has arrived."""
    if file.bytes < WATCHED_BYTES:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_S):
            try:
                if (there := files.size(part)) is not None:
                    tell(there)
            except (DeviceError, RuntimesError):  # the push itself meets it as well
                return

    watcher = threading.Thread(target=watch, name=f"watch {part}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _push_on(host: Host, local: Path, part: str, file: File, say: Say) -> None:
    for left in reversed(range(ATTEMPTS)):
        try:
            host.push(local, part, deadline_s=host.timeouts.transfer_s(file.bytes))
        except ConnectionLostError as error:
            if not left:
                raise
            say(f"{error.message}; continuing")
        else:
            return


def _check_room(host: Host, folder: str, needed: int) -> None:
    free = host.files.free_bytes(folder)
    if free is not None and needed + SPARE_BYTES > free:
        raise DeviceError(
            f"the device's disk has {size_text(free)} free at {folder}; {size_text(needed)} must be pushed and "
            f"{SPARE_BYTES / 1e9:.1f} GB stay free; remove old artifacts beside it, or set `cache` in lab.toml"
        )
