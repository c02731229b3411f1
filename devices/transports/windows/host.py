"""A Windows machine behind its OpenSSH server, as a Host (devices.transports.ssh_wire). It needs Python on the device.

Windows' server gives a command line to cmd.exe or PowerShell, and each program splits it into words in its own way. So
we use one command line only, which none of them can misread: it starts Python, which runs the program that comes on its
standard input (side.py, and one command). Words and file names travel there, as JSON; the device's Python
starts a program from its words, without a shell.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from devices.transports.host import SILENT_SHELL, Finished, LineProcess
from devices.transports.ssh_wire import SshWire
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts
from devices.transports.windows.files import WindowsFiles, check_name
from export.strict import parse_json
from runtimes.errors import TransportError

T = TypeVar("T")
GREETING = 'echo "%OS% $PSHOME"'  # cmd.exe fills in the first, PowerShell the second, sh neither
# Isolated and without `site`: no file of the device changes it, and it starts faster. The first line is read byte by
# byte, because what follows it must not be read ahead.
_START = "-IS -c \"exec(open(0,'rb',0,closefd=False).readline())\""
# That line: it reads so many bytes, and runs them.
_FIRST = """
import os
text = b""
while len(text) < {count}:
    piece = os.read(0, {count} - len(text))
    if not piece:
        raise SystemExit(1)
    text += piece
exec(text)
"""
_SMALL_BYTES = 1 << 18
_PYTHON = re.compile(r"[\w.:\\/ ()+@~-]+")


class WindowsHost:
    """See devices.transports.host.Host."""

    def __init__(
        self,
        host: str,
        *,
        python: str = "python",
        port: int | None = None,
        config: Path | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ):
        """`python` starts Python in the device's shell: a name on its PATH, or a path."""
        if not _PYTHON.fullmatch(python) or python.startswith("-"):
            raise TransportError(
                f"python {python!r}: contains characters that cmd.exe or PowerShell would change; allowed are letters, "
                "digits, spaces and _ . : \\ / ( ) + @ ~ -; move Python, or put it on the PATH"
            )
        self.timeouts = timeouts
        self.files = WindowsFiles(self)
        self.wire = SshWire(host, port=port, config=config, timeouts=timeouts, greeting=GREETING)
        self._python = python.replace("/", "\\")  # cmd.exe takes /name for an option

    def run(self, command: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Finished:
        """See Host.run."""
        return self._command("run", deadline_s=deadline_s, data=stdin, doing=command, words=_words(command))

    def start(self, command: Sequence[str]) -> LineProcess:
        """See Host.start."""
        head = _program("run", {"words": _words(command)})
        process = self.wire.start(self._line())
        process.write_line(head.removesuffix(b"\n"))
        return process

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        """See Host.push."""
        check_name(remote)
        total = local.stat().st_size
        # Each command starts a Python there: a small file is sooner sent again than asked for.
        there = 0 if total <= _SMALL_BYTES else self.ask("size", int, path=remote)
        offset = min(max(0, there), total)
        head = _program("append", {"path": remote, "offset": offset})
        with _followed(head, local, offset) as source:
            done = self.wire.run(self._line(), deadline_s=deadline_s, stdin=source, doing=["append", remote])
        done.checked(f"writing {remote}")

    def close(self) -> None:
        """See Host.close."""
        self.wire.close()

    def shell(self) -> str:
        """The device's default shell: "cmd", "powershell", or "other" for one that is not Windows'."""
        self.wire.connect()
        return _shell(self.wire.greeted)

    def ask(self, do: str, kind: type[T], *, deadline_s: float | None = None, **fields: Any) -> T:
        """The answer of a command of side.py, which is of this kind. Raises TransportError."""
        answer = self.tell(do, deadline_s=deadline_s, **fields)
        try:
            value = parse_json(answer)
        except ValueError:
            value = None
        if type(value) is not kind:
            raise TransportError(f"{self.wire.name} answered {answer[:80]!r}; {SILENT_SHELL}")
        return value

    def tell(self, do: str, *, deadline_s: float | None = None, **fields: Any) -> bytes:
        """Run a command of side.py, and return what it printed. Raises TransportError."""
        return self._command(do, deadline_s=deadline_s, **fields).checked(f"{do} {fields.get('path', '')}")

    def _command(
        self, do: str, *, deadline_s: float | None, data: bytes = b"", doing: Sequence[str] = (), **fields: Any
    ) -> Finished:
        limit_s = self.timeouts.command_s if deadline_s is None else deadline_s
        stdin = _program(do, fields) + data
        return self.wire.run(self._line(), deadline_s=limit_s, stdin=stdin, doing=doing or [do])

    def _line(self) -> str:
        """The one command line."""
        shell = self.shell()
        if shell == "other":
            raise TransportError(
                f"{self.wire.name} answers {self.wire.greeted[:60]!r} to `{GREETING}`: neither cmd.exe nor PowerShell; "
                'with a POSIX shell write transport = "ssh"; else make one of the two the default shell of its sshd'
            )
        if shell == "powershell":
            return f'& "{self._python}" {_START}; exit $LASTEXITCODE'
        return f'"{self._python}" {_START}' if re.search("[ ()+@~]", self._python) else f"{self._python} {_START}"


def _words(command: Sequence[str]) -> list[str]:
    if any("\0" in word for word in command):
        raise TransportError(f"an argument contains a NUL, which no program can take: {command!r:.80}")
    return list(command)


def _shell(greeted: bytes) -> str:
    if b"Windows_NT" in greeted:
        return "cmd"
    return "powershell" if re.search(rb"%OS% \S*[A-Za-z]:\\", greeted) else "other"


@functools.cache
def _side() -> str:
    return Path(__file__).with_name("side.py").read_text(encoding="utf-8")


def _program(do: str, fields: dict[str, Any]) -> bytes:
    """What Python reads on the device before the data: side.py, and the command as its last line."""
    command = json.dumps({"do": do, **fields})
    text = f"{_side()}\nsys.exit(main(json.loads({command!a})))\n".encode()
    return f"exec({_FIRST.format(count=len(text))!a})\n".encode("ascii") + text


@contextlib.contextmanager
def _followed(head: bytes, local: Path, offset: int) -> Iterator[IO[bytes]]:
    """A pipe that gives `head`, and then the file from `offset` on."""
    reading, writing = os.pipe()

    def feed() -> None:
        # A broken pipe means that the reading program has ended; its own error says why.
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as out, local.open("rb") as source:
            out.write(head)
            source.seek(offset)
            shutil.copyfileobj(source, out, 1 << 20)

    with os.fdopen(reading, "rb") as given:
        thread = threading.Thread(target=feed, name="feed", daemon=True)
        thread.start()
        yield given
    thread.join()
