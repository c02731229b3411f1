"""A Windows machine's file system, as Files: each call is one command of side.py on the device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from devices.transports.files import Files
from runtimes.errors import TransportError

if TYPE_CHECKING:
    from devices.transports.windows.host import WindowsHost

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]|[ .]$')


class WindowsFiles(Files):
    """See Files."""

    def __init__(self, host: WindowsHost) -> None:
        self._host = host
        self._folders: dict[str, str] = {}  # made already: as given -> absolute

    def make_folder(self, path: str) -> str:
        """See Files.make_folder."""
        if path not in self._folders:
            self._folders[path] = self._host.ask("folder", str, path=path)
        return self._folders[path]

    def exist(self, folder: str, names: Sequence[str]) -> list[bool]:
        """See Files.exist."""
        for name in names:
            check_name(name)
        there = self._host.ask("exist", list, path=folder, names=list(names))
        if len(there) != len(names) or not all(isinstance(each, bool) for each in there):
            raise TransportError(f"looking into {folder}: the device answered {there!r:.60}")
        return there

    def sha256(self, path: str, *, deadline_s: float) -> str:
        """See Files.sha256."""
        return self._host.ask("sha256", str, deadline_s=deadline_s, path=path)

    def verify_and_rename(self, path: str, to: str, sha256: str, *, deadline_s: float) -> bool:
        """See Files.verify_and_rename."""
        return self._host.ask("verify_and_rename", bool, deadline_s=deadline_s, path=path, to=to, wanted=sha256)

    def replace(self, path: str, to: str) -> None:
        """See Files.replace."""
        self._host.tell("replace", path=path, to=to)

    def remove(self, path: str) -> None:
        """See Files.remove."""
        self._folders.clear()
        self._host.tell("remove", path=path, deadline_s=self._host.timeouts.remove_s)

    def size(self, path: str) -> int | None:
        """See Files.size. A look takes a second on Windows, and is left out."""
        return None

    def sync(self, *, deadline_s: float) -> None:
        """Nothing to do: each push is on the disk when it returns."""

    def free_bytes(self, folder: str) -> int | None:
        """See Files.free_bytes."""
        return self._host.ask("free", int, path=folder)


def check_name(path: str) -> None:
    """Raises TransportError for a path whose last part cannot be a file's name on Windows."""
    name = PurePosixPath(path).name
    if not name or _FORBIDDEN.search(name) or _RESERVED.fullmatch(name):
        raise TransportError(
            f"{name!r} cannot be a file's name on Windows: none of < > : \" | ? * \\ or control characters, no full "
            "stop or space at its end, no device's name such as NUL; rename it"
        )
