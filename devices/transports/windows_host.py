"""A Windows machine behind its OpenSSH server, as a Host (devices.transports.ssh_wire). It needs Python on the device.

Windows' server hands a command line to cmd.exe or PowerShell, and each program takes it apart in its own way. So there
is one command line only, which none of them can mistake: Python, told to run what comes on its standard input
(windows_side.py, and a command). Words and file names go there, as JSON; a program is started from its words by
the device's Python, without a shell.
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
from pathlib import Path, PurePosixPath
from typing import IO, Any

from devices.transports.host import Finished, LineProcess
from devices.transports.ssh_wire import SshWire
from runtimes.errors import TransportError

LOOK_S = 60.0
GREETING = 'echo "%OS% $PSHOME"'  # cmd.exe fills in the first, PowerShell the second, sh neither
# Isolated and without `site`: no file of the device changes it, and it starts faster. The first line is read byte by
# byte: what follows it is not to be read ahead.
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
_PYTHON = re.compile(r"[\w.:\\/ ()+@~-]+")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]|[ .]$')


class WindowsHost:
    """See devices.transports.host.Host, and devices.drivers.files.Files, which it is by itself."""

    def __init__(self, host: str, *, python: str = "python", port: int | None = None, config: Path | None = None):
        """`python` starts Python in the device's shell: a name on its PATH, or a path."""
        if not _PYTHON.fullmatch(python) or python.startswith("-"):
            raise TransportError(
                f"python {python!r}: holds what cmd.exe or PowerShell would not take as it is; allowed are letters, "
                "digits, spaces and _ . : \\ / ( ) + @ ~ -; move Python, or put it on the PATH"
            )
        self._python = python.replace("/", "\\")  # cmd.exe takes /name for an option
        self._folders: dict[str, str] = {}  # that are made: as given, absolute
        self.wire = SshWire(host, port=port, config=config, greeting=GREETING)

    def run(self, command: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Finished:
        """See Host.run."""
        return self._order("run", deadline_s=deadline_s, data=stdin, told=command, words=_words(command))

    def start(self, command: Sequence[str]) -> LineProcess:
        """See Host.start."""
        head = _program("run", {"words": _words(command)})
        process = self.wire.start(self._line())
        process.write_line(head.removesuffix(b"\n"))
        return process

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        """See Host.push."""
        check_name(remote)
        offset, total = int(self._ask("size", path=remote)), local.stat().st_size
        head = _program("append", {"path": remote, "offset": min(offset, total)})
        with _followed(head, local, min(offset, total)) as source:
            done = self.wire.run(self._line(), deadline_s=deadline_s, stdin=source, told=["append", remote])
        done.checked(f"writing {remote}")

    def pull(self, remote: str, local: Path, *, deadline_s: float) -> None:
        """See Host.pull."""
        content = self._order("read", deadline_s=deadline_s, path=remote).checked(f"reading {remote}")
        part = local.with_name(local.name + ".part")
        part.write_bytes(content)
        part.replace(local)

    def close(self) -> None:
        """See Host.close."""
        self.wire.close()

    def shell(self) -> str:
        """The device's default shell: "cmd", "powershell", or "other" for what is no shell of Windows."""
        self.wire.connect()
        return _shell(self.wire.greeted)

    def make_folder(self, path: str) -> str:
        """See Files.make_folder."""
        if path not in self._folders:
            self._folders[path] = str(self._ask("folder", path=path))
        return self._folders[path]

    def exist(self, folder: str, names: Sequence[str]) -> list[bool]:
        """See Files.exist."""
        for name in names:
            check_name(name)
        return [bool(there) for there in self._ask("exist", path=folder, names=list(names))]

    def sha256(self, path: str, *, deadline_s: float) -> str:
        """See Files.sha256."""
        return str(self._ask("sha256", deadline_s=deadline_s, path=path))

    def settle(self, path: str, to: str, sha256: str, *, deadline_s: float) -> bool:
        """See Files.settle."""
        return bool(self._ask("settle", deadline_s=deadline_s, path=path, to=to, wanted=sha256))

    def replace(self, path: str, to: str) -> None:
        """See Files.replace."""
        self._order("replace", path=path, to=to).checked(f"renaming {path}")

    def remove(self, path: str) -> None:
        """See Files.remove."""
        self._folders.clear()
        self._order("remove", path=path, deadline_s=5 * LOOK_S).checked(f"removing {path}")

    def sync(self, *, deadline_s: float) -> None:
        """Each push is on the disk when it ends."""

    def free_bytes(self, folder: str) -> int | None:
        """See Files.free_bytes."""
        return int(self._ask("free", path=folder))

    def _ask(self, do: str, *, deadline_s: float = LOOK_S, **fields: Any) -> Any:
        done = self._order(do, deadline_s=deadline_s, **fields).checked(f"{do} {fields.get('path', '')}")
        try:
            return json.loads(done)
        except ValueError:
            raise TransportError(
                f"{self.wire.name} answered {done[:80]!r}; if a start-up file of its shell prints something, make it "
                "silent"
            ) from None

    def _order(
        self, do: str, *, deadline_s: float = LOOK_S, data: bytes = b"", told: Sequence[str] = (), **fields: Any
    ) -> Finished:
        stdin = _program(do, fields) + data
        return self.wire.run(self._line(), deadline_s=deadline_s, stdin=stdin, told=told or [do])

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


def check_name(path: str) -> None:
    """Raises TransportError for a path whose last part Windows cannot hold."""
    name = PurePosixPath(path).name
    if not name or _FORBIDDEN.search(name) or _RESERVED.fullmatch(name):
        raise TransportError(
            f"{name!r} cannot be a file's name on Windows: none of < > : \" | ? * \\ or control characters, no full "
            "stop or space at its end, no device's name such as NUL; rename it"
        )


def _words(command: Sequence[str]) -> list[str]:
    if any("\0" in word for word in command):
        raise TransportError(f"an argument holds a NUL, which no program can be given: {command!r:.80}")
    return list(command)


def _shell(greeted: bytes) -> str:
    if b"Windows_NT" in greeted:
        return "cmd"
    return "powershell" if re.search(rb"%OS% \S*[A-Za-z]:\\", greeted) else "other"


@functools.cache
def _side() -> str:
    return Path(__file__).with_name("windows_side.py").read_text(encoding="utf-8")


def _program(do: str, fields: dict[str, Any]) -> bytes:
    """What Python reads on the device before the data: windows_side.py, and the order as its last line."""
    order = json.dumps({"do": do, **fields})
    text = f"{_side()}\nsys.exit(main(json.loads({order!a})))\n".encode()
    return f"exec({_FIRST.format(count=len(text))!a})\n".encode("ascii") + text


@contextlib.contextmanager
def _followed(head: bytes, local: Path, offset: int) -> Iterator[IO[bytes]]:
    """A pipe that gives `head`, and then the file from `offset` on."""
    reading, writing = os.pipe()

    def feed() -> None:
        # A broken pipe is the end of the program that reads, which says itself why.
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as out, local.open("rb") as source:
            out.write(head)
            source.seek(offset)
            shutil.copyfileobj(source, out, 1 << 20)

    with os.fdopen(reading, "rb") as given:
        thread = threading.Thread(target=feed, name="feed", daemon=True)
        thread.start()
        yield given
    thread.join()
