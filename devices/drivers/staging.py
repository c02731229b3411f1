"""Bring files to a device so that what is there is whole: by hash, `.part`, verified there, then renamed.

A folder is named by its artifact's digest, and its manifest comes last, as in an export: a folder with a manifest is
whole. How a file is looked at and moved there is devices.drivers.files'.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from devices.drivers.driver import Say
from devices.drivers.files import SHORT_S, files_of
from devices.errors import DeviceError
from devices.transports.host import Host
from export.artifact import MANIFEST, Artifact, File, sha256_file
from runtimes.errors import ConnectionLostError, TransportError

SLOWEST_BYTES_PER_S = 200_000  # of a wire and a card that are still worth waiting for
ATTEMPTS = 3  # of a push whose connection breaks; each goes on where the last one ended
WHOLE_ATTEMPTS = 2  # of a push that arrived, but not as it was sent
SPARE_BYTES = 100_000_000  # that must stay free on the device


def deadline_s(size: int) -> float:
    """For moving or hashing so many bytes."""
    return SHORT_S + size / SLOWEST_BYTES_PER_S


def stage_artifact(host: Host, artifact: Artifact, cache: str, say: Say) -> str:
    """Push what is missing of the artifact to <cache>/<digest>/ and return that folder. Raises TransportError and,
    where the disk has no room, DeviceError."""
    files = files_of(host)
    folder = f"{cache}/{artifact.manifest.digest()}"
    files.make_folder(folder)
    names = [*artifact.manifest.files, MANIFEST]
    there = dict(zip(names, files.exist(folder, names), strict=True))
    if there[MANIFEST] and all(there.values()):
        return folder
    missing = {name: file for name, file in artifact.manifest.files.items() if not there[name]}
    _check_room(host, folder, sum(file.bytes for file in missing.values()))
    for name, file in missing.items():
        push_file(host, artifact.folder / name, f"{folder}/{name}", file, say)
    # What was pushed is on the disk before the manifest says that it is.
    files.sync(deadline_s=deadline_s(sum(file.bytes for file in missing.values())))
    manifest = artifact.folder / MANIFEST
    push_file(host, manifest, f"{folder}/{MANIFEST}", describe(manifest), say)
    return folder


def describe(path: Path) -> File:
    """Size and hash of a file of this machine."""
    return File(bytes=path.stat().st_size, sha256=sha256_file(path))


def push_file(host: Host, local: Path, remote: str, file: File, say: Say) -> None:
    """Push one file: to `.part`, continued where an earlier push broke, verified on the device, renamed."""
    files, part = files_of(host), remote + ".part"
    files.make_folder(str(PurePosixPath(remote).parent))
    for _ in range(WHOLE_ATTEMPTS):
        say(f"pushing {PurePosixPath(remote).name} ({file.bytes / 1e6:.1f} MB)")
        _push_on(host, local, part, file, say)
        if files.settle(part, remote, file.sha256, deadline_s=deadline_s(file.bytes)):
            return
        # What an earlier push left was not the beginning of this file, or another client pushes it too.
    raise TransportError(
        f"{remote} arrives damaged: its sha256 on the device was wrong {WHOLE_ATTEMPTS} times; check its disk, and "
        "that nobody else pushes at the same time"
    )


def remote_sha256(host: Host, remote: str, size: int) -> str:
    """SHA-256 of a file on the device, by the device."""
    return files_of(host).sha256(remote, deadline_s=deadline_s(size))


def _push_on(host: Host, local: Path, part: str, file: File, say: Say) -> None:
    for left in reversed(range(ATTEMPTS)):
        try:
            host.push(local, part, deadline_s=deadline_s(file.bytes))
        except ConnectionLostError as error:
            if not left:
                raise
            say(f"{str(error).splitlines()[0]}; going on")
        else:
            return


def exist(host: Host, folder: str, names: Sequence[str]) -> list[bool]:
    """Which of these files are in the device's folder."""
    return files_of(host).exist(folder, names)


def _check_room(host: Host, folder: str, needed: int) -> None:
    free = free_bytes(host, folder)
    if free is not None and needed + SPARE_BYTES > free:
        raise DeviceError(
            f"the device's disk has {free / 1e9:.2f} GB free at {folder}; {needed / 1e9:.2f} GB must be pushed and "
            f"{SPARE_BYTES / 1e9:.1f} GB stay free; remove old artifacts beside it, or set `cache` in lab.toml"
        )


def free_bytes(host: Host, folder: str) -> int | None:
    """What a user may still write there; None where the device does not tell."""
    return files_of(host).free_bytes(folder)
