"""This machine as a Host: the transport without a wire. For bench's fresh processes, and tests of what uses hosts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from devices.transports.child import ChildLines, run_child
from devices.transports.files import Files, PosixFiles
from devices.transports.host import Finished, LineProcess
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts
from runtimes.errors import TransportError


class LocalHost:
    """See devices.transports.host.Host."""

    def __init__(self, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self.timeouts = timeouts
        self.files: Files = PosixFiles(self)

    def run(self, command: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Finished:
        """See Host.run."""
        return run_child(command, deadline_s=deadline_s, stdin=stdin)

    def start(self, command: Sequence[str]) -> LineProcess:
        """See Host.start."""
        return ChildLines(command)

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        """See Host.push. Continues a shorter file, as a wire would."""
        target = Path(remote)
        try:
            with local.open("rb") as source, target.open("ab") as out:
                source.seek(out.tell())
                shutil.copyfileobj(source, out, 1 << 20)
        except OSError as error:
            raise TransportError(f"{local} cannot be copied to {remote} ({error.strerror})") from error

    def close(self) -> None:
        """Nothing to do: there is no connection."""
