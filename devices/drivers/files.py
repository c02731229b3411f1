"""What staging asks of a device's file system, and its answer where the device has a POSIX shell.

A host that keeps files in a way of its own (Windows) has these methods itself. Paths are written with forward slashes.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from devices.transports.host import Host

SHORT_S = 60.0  # for a command that only looks
_FOLDER = 'mkdir -p -- "$1" && cd -- "$1" && pwd -P'
_EXIST = """there= && cd "$1" 2>/dev/null && there=y
shift && for name; do if [ "$there" ] && [ -f "./$name" ]; then echo y; else echo n; fi; done"""

# sh FINISH PART NAME SHA256 RANDOM: takes the part away under a name that nobody else knows, verifies it there, and
# only then gives it its own. So one of two clients that push the same file cannot put the other's beginning in place.
_FINISH = """
command -v sha256sum >/dev/null || { echo "the device has no sha256sum" >&2; exit 1; }
is_whole() { seen="$(sha256sum <"$1")" && [ "${seen%% *}" = "$2" ]; }
if mv -f "$1" "$1.$4" 2>/dev/null; then
  is_whole "$1.$4" "$3" && exec mv -f "$1.$4" "$2"
  rm -f "$1.$4"
elif [ -f "$2" ] && is_whole "$2" "$3"; then
  exit 0
fi
exit 3
"""
_NOT_WHOLE = 3


@runtime_checkable
class Files(Protocol):
    """Every call raises TransportError."""

    def make_folder(self, path: str) -> str:
        """Make it with those above it, unless it is there. Its absolute path; relative is to the home folder."""
        ...

    def exist(self, folder: str, names: Sequence[str]) -> list[bool]:
        """Which files are there."""
        ...

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        """See Host.push."""
        ...

    def sha256(self, path: str, *, deadline_s: float) -> str:
        """Of its content, by the device."""
        ...

    def settle(self, path: str, to: str, sha256: str, *, deadline_s: float) -> bool:
        """`replace`, if the content has this hash, or `to` has it already; else `path` goes, and False."""
        ...

    def replace(self, path: str, to: str) -> None:
        """Rename; what was there goes."""
        ...

    def remove(self, path: str) -> None:
        """A file, or a folder with all that is in it; nothing where there is none."""
        ...

    def sync(self, *, deadline_s: float) -> None:
        """What was pushed is on the disk afterwards."""
        ...

    def free_bytes(self, folder: str) -> int | None:
        """What a user may still write there; None where the device does not tell."""
        ...


class PosixFiles:
    """By the shell and sha256sum of a device."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.push = host.push

    def make_folder(self, path: str) -> str:
        """See Files.make_folder."""
        made = self._checked(["sh", "-c", _FOLDER, "sh", path], f"making {path}")
        return made.decode("utf-8", "surrogateescape").rstrip("\n")

    def exist(self, folder: str, names: Sequence[str]) -> list[bool]:
        """See Files.exist."""
        told = self._checked(["sh", "-c", _EXIST, "sh", folder, *names], f"looking into {folder}")
        return [word == b"y" for word in told.split()]

    def sha256(self, path: str, *, deadline_s: float) -> str:
        """See Files.sha256. From its stdin: sha256sum escapes odd file names."""
        command = ["sh", "-c", 'sha256sum <"$1"', "sh", path]
        return self._checked(command, f"hashing {path}", deadline_s).split()[0].decode("ascii")

    def settle(self, path: str, to: str, sha256: str, *, deadline_s: float) -> bool:
        """See Files.settle."""
        finish = ["sh", "-c", _FINISH, "sh", path, to, sha256, secrets.token_hex(4)]
        done = self._host.run(finish, deadline_s=deadline_s)
        if done.exit_code != _NOT_WHOLE:
            done.checked(f"putting {to} in its place")
        return done.exit_code != _NOT_WHOLE

    def replace(self, path: str, to: str) -> None:
        """See Files.replace."""
        self._checked(["mv", "-f", path, to], f"renaming {path}")

    def remove(self, path: str) -> None:
        """See Files.remove."""
        self._checked(["rm", "-rf", path], f"removing {path}", 5 * SHORT_S)

    def sync(self, *, deadline_s: float) -> None:
        """See Files.sync."""
        self._checked(["sync"], "syncing the disk", deadline_s)

    def free_bytes(self, folder: str) -> int | None:
        """See Files.free_bytes."""
        done = self._host.run(["df", "-Pk", folder], deadline_s=SHORT_S)
        words = done.stdout.decode("utf-8", "replace").splitlines()[-1:]
        try:
            return int(words[0].split()[3]) * 1024
        except (IndexError, ValueError):
            return None

    def _checked(self, command: Sequence[str], doing: str, deadline_s: float = SHORT_S) -> bytes:
        return self._host.run(command, deadline_s=deadline_s).checked(doing)


def files_of(host: Host) -> Files:
    """The files behind a host."""
    return host if isinstance(host, Files) else PosixFiles(host)
