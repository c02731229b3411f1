"""A device's file system as staging needs it: the interface, and its implementation for a POSIX shell.

Windows' is windows/files.py. Paths are written with forward slashes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Protocol

from devices.transports.host import SILENT_SHELL, Host
from runtimes.errors import TransportError

_FOLDER = 'mkdir -p -- "$1" && cd -- "$1" && pwd -P'
_EXIST = """there= && cd "$1" 2>/dev/null && there=y
shift && for name; do if [ "$there" ] && [ -f "./$name" ]; then echo y; else echo n; fi; done"""

# sh VERIFY PART NAME SHA256 RANDOM: renames the part to a random name, verifies it there, and only then gives it its
# final name. So when two clients push the same file, neither can put the other's incomplete file in place.
_VERIFY = """
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


class Files(Protocol):
    """Every call raises TransportError."""

    def make_folder(self, path: str) -> str:
        """Make a folder and its parents where they are missing, and return its absolute path. A relative path starts at
        the home folder."""
        ...

    def exist(self, folder: str, names: Sequence[str]) -> list[bool]:
        """For each name, whether `folder` has this file."""
        ...

    def sha256(self, path: str, *, deadline_s: float) -> str:
        """SHA-256 of its content, computed by the device."""
        ...

    def verify_and_rename(self, path: str, to: str, sha256: str, *, deadline_s: float) -> bool:
        """Rename `path` to `to` if its content has this hash; if not, remove it and return False. True as well where
        `path` is gone and `to` has the hash: another client was faster."""
        ...

    def replace(self, path: str, to: str) -> None:
        """Rename `path` to `to`, and overwrite what was there."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with everything in it. Without effect if `path` does not exist."""
        ...

    def sync(self, *, deadline_s: float) -> None:
        """Return when everything that was pushed is on the disk."""
        ...

    def size(self, path: str) -> int | None:
        """How many bytes of a file are there now; None where it is not there, or the device is not asked for it."""
        ...

    def free_bytes(self, folder: str) -> int | None:
        """How many bytes an ordinary user may still write there; None where the device does not report it."""
        ...


class PosixFiles(Files):
    """See Files. It uses the device's shell and sha256sum."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def make_folder(self, path: str) -> str:
        """See Files.make_folder."""
        made = self._checked(["sh", "-c", _FOLDER, "sh", path], f"making {path}").rstrip(b"\n")
        if not made.startswith(b"/") or b"\n" in made:
            raise TransportError(f"making {path}: the device answered {made[:60]!r}, not a path; {SILENT_SHELL}")
        return made.decode("utf-8", "surrogateescape")

    def exist(self, folder: str, names: Sequence[str]) -> list[bool]:
        """See Files.exist."""
        answer = self._checked(["sh", "-c", _EXIST, "sh", folder, *names], f"looking into {folder}")
        words = answer.split()
        if len(words) != len(names) or not set(words) <= {b"y", b"n"}:
            raise TransportError(f"looking into {folder}: the device answered {answer[:60]!r}; {SILENT_SHELL}")
        return [word == b"y" for word in words]

    def sha256(self, path: str, *, deadline_s: float) -> str:
        """See Files.sha256. It reads stdin, because sha256sum escapes odd file names."""
        command = ["sh", "-c", 'sha256sum <"$1"', "sh", path]
        answer = self._checked(command, f"hashing {path}", deadline_s)
        if (found := re.fullmatch(rb"([0-9a-f]{64})\s+-?\s*", answer)) is None:
            raise TransportError(f"hashing {path}: the device answered {answer[:60]!r}; {SILENT_SHELL}")
        return found[1].decode("ascii")

    def verify_and_rename(self, path: str, to: str, sha256: str, *, deadline_s: float) -> bool:
        """See Files.verify_and_rename."""
        verify = ["sh", "-c", _VERIFY, "sh", path, to, sha256, secrets.token_hex(4)]
        done = self._host.run(verify, deadline_s=deadline_s)
        if done.exit_code != _NOT_WHOLE:
            done.checked(f"renaming {path} to {to}")
        return done.exit_code != _NOT_WHOLE

    def replace(self, path: str, to: str) -> None:
        """See Files.replace."""
        self._checked(["mv", "-f", path, to], f"renaming {path}")

    def remove(self, path: str) -> None:
        """See Files.remove."""
        self._checked(["rm", "-rf", path], f"removing {path}", self._host.timeouts.remove_s)

    def sync(self, *, deadline_s: float) -> None:
        """See Files.sync."""
        self._checked(["sync"], "syncing the disk", deadline_s)

    def size(self, path: str) -> int | None:
        """See Files.size."""
        done = self._host.run(["stat", "-c", "%s", path], deadline_s=self._host.timeouts.command_s)
        return int(done.stdout) if done.exit_code == 0 and re.fullmatch(rb"\s*[0-9]{1,18}\s*", done.stdout) else None

    def free_bytes(self, folder: str) -> int | None:
        """See Files.free_bytes."""
        done = self._host.run(["df", "-Pk", folder], deadline_s=self._host.timeouts.command_s)
        words = done.stdout.decode("utf-8", "replace").splitlines()[-1:]
        try:
            return int(words[0].split()[3]) * 1024
        except (IndexError, ValueError):
            return None

    def _checked(self, command: Sequence[str], doing: str, deadline_s: float | None = None) -> bytes:
        limit_s = self._host.timeouts.command_s if deadline_s is None else deadline_s
        return self._host.run(command, deadline_s=limit_s).checked(doing)
