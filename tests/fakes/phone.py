"""The device behind fakes.adbd: its shell (v2), its sync service, its properties. Speaks bytes of a stream only.

It keeps to one folder: pushed files must go into it, and `bin/` in it holds the phone's own tools (getprop, dumpsys,
and a cat that shows the folder's /proc and /sys before this machine's).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import struct
import subprocess
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Protocol

STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
WORD = struct.Struct("<I")
STAT_V1, STAT_V2 = struct.Struct("<4s3I"), struct.Struct("<4sI2Q4IQ3q")
PERMISSIONS = 0o777

PROPERTIES = {
    "ro.product.manufacturer": "Fake",
    "ro.product.model": "Phone 1",
    "ro.soc.manufacturer": "Fake",
    "ro.soc.model": "FK1000",
    "ro.build.version.release": "16",
    "ro.build.version.sdk": "36",
    "ro.build.fingerprint": "fake/phone/1:16/TEST/1:user/release-keys",
    "ro.product.cpu.abi": "arm64-v8a",
    "sys.boot_completed": "1",
}
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  Charge counter: 3912000
  status: 2
  health: 2
  present: true
  level: 87
  scale: 100
  voltage: 4213
  temperature: 291
  technology: Li-ion
"""
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
	callbacks: 2
Thermal Status: 0
Cached temperatures:
	Temperature{mValue=55.0, mType=0, mName=CPU0, mStatus=0}
HAL Ready: true
HAL connection:
	ThermalHAL AIDL 1  connected: yes
Current temperatures from HAL:
	Temperature{mValue=31.5, mType=0, mName=CPU0, mStatus=0}
	Temperature{mValue=30.25, mType=3, mName=skin, mStatus=0}
	Temperature{mValue=-3.4028235E38, mType=9, mName=npu, mStatus=0}
Current cooling devices from HAL:
	CoolingDevice{mValue=0, mType=2, mName=cpufreq-cpu0}
"""
CAT = """#!/bin/sh
for name in "$@"; do
  if [ -e "$PHONE$name" ]; then set -- "$@" "$PHONE$name"; else set -- "$@" "$name"; fi
  shift
done
PATH=/usr/bin:/bin exec cat "$@"
"""


class Gone(Exception):
    """The stream or the connection was closed by the other side."""


class Wire(Protocol):
    """What the services need of a stream; see fakes.adbd.Stream. `read` and `write` raise Gone."""

    closed: threading.Event

    def read(self, size: int) -> bytes: ...

    def read_some(self) -> bytes: ...

    def write(self, data: bytes) -> None: ...

    def open(self, destination: bytes) -> Wire: ...

    def close(self) -> None: ...


class FakePhone:
    """One phone's folder, processes and free space. `free_bytes` None is plenty."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "fake_phone",
        properties: Mapping[str, str] = PROPERTIES,
        dumps: Mapping[str, str] | None = None,
        free_bytes: int | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.name = name
        self.free_bytes = free_bytes
        self.devtools_port: int | None = None  # of a Chromium on this machine that acts its Chrome
        self.reverses: dict[bytes, socket.socket] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self.boot()
        tools = self.folder / "bin"
        tools.mkdir(parents=True, exist_ok=True)
        answers = "\n".join(f"  {key}) echo {shlex.quote(value)};;" for key, value in properties.items())
        _tool(tools / "getprop", f'#!/bin/sh\ncase "$1" in\n{answers}\n  *) echo;;\nesac\n')
        told = {"battery": BATTERY, "thermalservice": THERMAL} if dumps is None else dumps
        cases = "\n".join(f"  {key}) printf %s {shlex.quote(text)};;" for key, text in told.items())
        _tool(tools / "dumpsys", f'#!/bin/sh\ncase "$1" in\n{cases}\n  *) echo "Can\'t find service: $1";;\nesac\n')
        _tool(tools / "cat", CAT)
        _tool(tools / "am", "#!/bin/sh\necho Starting: Intent\n")
        _tool(tools / "pm", "#!/bin/sh\necho package:/data/app/base.apk\n")
        _tool(tools / "input", "#!/bin/sh\n")

    def boot(self) -> None:
        """A new boot id."""
        boot_id = self.folder / "proc/sys/kernel/random/boot_id"
        boot_id.parent.mkdir(parents=True, exist_ok=True)
        boot_id.write_text(f"{uuid.uuid4()}\n")

    def reboot(self) -> None:
        """Every process ends; the boot id changes."""
        self.kill_all()
        self.boot()

    def kill_all(self) -> None:
        for process in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def service(self, destination: bytes) -> Callable[[Wire], None] | None:
        """The service that an OPEN names; None where there is none."""
        name, _, rest = destination.partition(b":")
        if name.split(b",")[:2] == [b"shell", b"v2"]:
            return lambda wire: self._shell(wire, rest)
        if name == b"sync":
            return self._sync
        if name == b"reverse":
            return lambda wire: self._reverse(wire, rest)
        if (name, rest) == (b"localabstract", b"chrome_devtools_remote") and self.devtools_port is not None:
            return self._devtools
        return None

    def _devtools(self, wire: Wire) -> None:
        """To the Chromium that acts the phone's Chrome, and back."""
        with socket.create_connection(("127.0.0.1", self.devtools_port or 0)) as browser:
            _relay(wire, browser)

    def _reverse(self, wire: Wire, asked: bytes) -> None:
        """`forward:tcp:HERE;tcp:THERE`: a port of the phone, which is this machine, to one of the client's machine."""
        what, _, rest = asked.partition(b":")
        here, _, there = rest.partition(b";")
        if what == b"forward":
            listener = socket.create_server(("127.0.0.1", int(here.removeprefix(b"tcp:"))))
            self.reverses[here] = listener
            threading.Thread(target=_accept, args=(listener, wire, there), daemon=True).start()
        elif (known := self.reverses.pop(here, None)) is not None:  # killforward
            known.shutdown(socket.SHUT_RDWR)
            known.close()
        wire.write(b"OKAY")

    def _shell(self, wire: Wire, command: bytes) -> None:
        path = f"{self.folder}/bin:/usr/local/bin:/usr/bin:/bin"
        process = subprocess.Popen(
            [b"sh", b"-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env={"PATH": path, "PHONE": str(self.folder), "HOME": str(self.folder), "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._processes.add(process)
        feeder = threading.Thread(target=_feed, args=(wire, process.stdin), daemon=True)
        pumps = [
            threading.Thread(target=_pump, args=(wire, pipe, kind), daemon=True)
            for pipe, kind in ((process.stdout, STDOUT), (process.stderr, STDERR))
        ]
        for thread in (feeder, *pumps):
            thread.start()
        for thread in pumps:
            thread.join()
        # As adbd without a terminal: whoever outlives the client is not killed; its pipes are closed.
        code = process.wait()
        self._processes.discard(process)
        wire.write(bytes([EXIT]) + WORD.pack(1) + bytes([code if code >= 0 else 128 - code]))

    def _sync(self, wire: Wire) -> None:
        while True:
            request, size = wire.read(4), WORD.unpack(wire.read(4))[0]
            path = os.fsdecode(wire.read(size))
            match request:
                case b"QUIT":
                    return
                case b"STAT" | b"STA2" | b"LST2":
                    wire.write(_stat(request, Path(path)))
                case b"LIST":
                    wire.write(_list(Path(path)))
                case b"SEND":
                    name, _, mode = path.rpartition(",")
                    self._receive(wire, Path(name), int(mode))
                case _:
                    wire.write(_fail(f"unknown sync request {request!r}"))
                    return

    def _receive(self, wire: Wire, path: Path, mode: int) -> None:
        """SEND: the file may be there in part when the cable is pulled or the disk is full, as on a phone."""
        refusal = None
        if not path.parent.resolve().is_relative_to(self.folder):
            refusal = f"couldn't create file: Permission denied: {path} is outside of the fake phone's folder"
        out: IO[bytes] | None = None
        if refusal is None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                out = path.open("wb")
            except OSError as error:
                refusal = f"couldn't create file: {error.strerror}"
        try:
            while (kind := wire.read(4)) == b"DATA":
                data = wire.read(WORD.unpack(wire.read(4))[0])
                if out is None or refusal is not None:
                    continue
                if self.free_bytes is not None and len(data) > self.free_bytes:
                    refusal = "write failed: No space left on device"
                    continue
                if self.free_bytes is not None:
                    self.free_bytes -= len(data)
                out.write(data)
            when = WORD.unpack(wire.read(4))[0]
        finally:
            if out is not None:
                out.close()
        if kind != b"DONE":
            refusal = refusal or f"unexpected {kind!r} in a file"
        if refusal is not None:
            wire.write(_fail(refusal))
            return
        path.chmod(mode & PERMISSIONS or 0o644)
        os.utime(path, (when, when))
        wire.write(b"OKAY" + WORD.pack(0))


def _feed(wire: Wire, stdin: IO[bytes]) -> None:
    """The client's stdin packets, until it closes them or is gone."""
    with contextlib.suppress(Gone, BrokenPipeError), stdin:
        while True:
            kind, size = wire.read(1)[0], WORD.unpack(wire.read(4))[0]
            data = wire.read(size)
            if kind == STDIN:
                stdin.write(data)
                stdin.flush()
            elif kind == CLOSE_STDIN:
                return


def _pump(wire: Wire, pipe: IO[bytes], kind: int) -> None:
    with contextlib.suppress(Gone), pipe:
        while data := os.read(pipe.fileno(), 32768):
            wire.write(bytes([kind]) + WORD.pack(len(data)) + data)


def _accept(listener: socket.socket, wire: Wire, there: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve_reverse, args=(connection, wire, there), daemon=True).start()


def _serve_reverse(connection: socket.socket, wire: Wire, there: bytes) -> None:
    with connection, contextlib.suppress(Gone, OSError):
        stream = wire.open(there)
        _relay(stream, connection)
        stream.close()


def _relay(wire: Wire, connection: socket.socket) -> None:
    """Until either ends."""

    def back() -> None:
        with contextlib.suppress(Gone, OSError):
            while data := connection.recv(65536):
                wire.write(data)
        wire.close()

    threading.Thread(target=back, daemon=True).start()
    while data := wire.read_some():
        connection.sendall(data)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _stat(request: bytes, path: Path) -> bytes:
    try:
        seen = path.lstat() if request == b"LST2" else path.stat()
    except OSError as error:
        if request == b"STAT":
            return STAT_V1.pack(b"STAT", 0, 0, 0)
        return STAT_V2.pack(request, error.errno or 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    times = [int(moment) for moment in (seen.st_atime, seen.st_mtime, seen.st_ctime)]
    if request == b"STAT":
        return STAT_V1.pack(b"STAT", seen.st_mode, seen.st_size & 0xFFFFFFFF, times[1])
    who = (seen.st_dev, seen.st_ino, seen.st_mode, seen.st_nlink, seen.st_uid, seen.st_gid)
    return STAT_V2.pack(request, 0, *who, seen.st_size, *times)


def _list(path: Path) -> bytes:
    entries = b""
    with contextlib.suppress(OSError):
        for entry in path.iterdir():
            seen, name = entry.lstat(), os.fsencode(entry.name)
            entries += b"DENT" + struct.pack("<4I", seen.st_mode, seen.st_size, int(seen.st_mtime), len(name)) + name
    return entries + b"DONE" + bytes(16)


def _fail(message: str) -> bytes:
    return b"FAIL" + WORD.pack(len(message.encode())) + message.encode()


def _tool(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
