"""A phone for tests: a socket server that speaks the adb transport protocol, so that the real `adb` client drives it.

    with FakeAdbd(FakePhone(folder)) as adbd:  adb connect 127.0.0.1:{adbd.port}

Protocol: AOSP packages/modules/adb, protocol.txt, SYNC.TXT, shell_protocol.h. No TLS; authentication is only acted (the
state "unauthorized"). Commands run on this machine, with this user's rights: it listens on 127.0.0.1 alone.
    python -m fakes.adbd FOLDER [--port N]    serves until its input ends
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

from fakes.phone import FakePhone, Gone

State = Literal["device", "unauthorized", "offline"]
HEADER = struct.Struct("<6I")
VERSION = 0x01000001  # from this one on nobody looks at checksums
MAX_DATA = 256 * 1024
FEATURES = "shell_v2,cmd,stat_v2,fixed_push_mkdir"


class Stream:
    """One service's two-way byte stream. Every WRTE waits for its OKAY, as the protocol demands."""

    def __init__(self, connection: Connection, local: int, remote: int) -> None:
        self._connection = connection
        self._local, self._remote = local, remote
        self._incoming: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._acknowledged = threading.Semaphore(0)
        self._writing = threading.Lock()
        self._buffer = b""
        self.closed = threading.Event()

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises Gone when the stream ends before."""
        while len(self._buffer) < size:
            piece = self._incoming.get()
            if piece is None:
                raise Gone
            self._buffer += piece
            self._connection.send(b"OKAY", self._local, self._remote)
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def read_some(self) -> bytes:
        """What has come, one byte at least; nothing at the stream's end."""
        try:
            first = self.read(1)
        except Gone:
            return b""
        rest, self._buffer = self._buffer, b""
        return first + rest

    def write(self, data: bytes) -> None:
        """All of it. Raises Gone."""
        with self._writing:
            for start in range(0, len(data), self._connection.max_data):
                piece = data[start : start + self._connection.max_data]
                self._connection.send(b"WRTE", self._local, self._remote, piece)
                self._acknowledged.acquire()
                if self.closed.is_set():
                    raise Gone

    def open(self, destination: bytes) -> Stream:
        """A service of the client's machine, over the same wire. Raises Gone."""
        return self._connection.open(destination)

    def close(self) -> None:
        """From our side."""
        if not self.closed.is_set():
            with contextlib.suppress(Gone):
                self._connection.send(b"CLSE", self._local, self._remote)
        self.end()

    def arrived(self, data: bytes) -> None:
        self._incoming.put(data)

    def acknowledged(self, remote: int) -> None:
        self._remote = remote
        self._acknowledged.release()

    def opened(self) -> None:
        """Wait for the client's first answer. Raises Gone."""
        self._acknowledged.acquire()
        if self.closed.is_set():
            raise Gone

    def end(self) -> None:
        """Wake whoever waits."""
        self.closed.set()
        self._incoming.put(None)
        self._acknowledged.release()


class Connection:
    """One client: packets in, packets out, and its streams."""

    def __init__(self, adbd: FakeAdbd, wire: socket.socket) -> None:
        self._adbd, self._wire = adbd, wire
        self._sending = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._next_id = 1
        self.max_data = MAX_DATA

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        if self._adbd.frozen:
            return
        number = int.from_bytes(command, "little")
        header = HEADER.pack(number, first, second, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF)
        try:
            with self._sending:
                self._wire.sendall(header + data)
        except OSError as error:
            raise Gone from error

    def open(self, destination: bytes) -> Stream:
        """See Stream.open."""
        local, stream = self._new_stream(0)
        self.send(b"OPEN", local, 0, destination + b"\0")
        stream.opened()
        return stream

    def _new_stream(self, remote: int) -> tuple[int, Stream]:
        with self._sending:
            local, self._next_id = self._next_id, self._next_id + 1
        self._streams[local] = stream = Stream(self, local, remote)
        return local, stream

    def drop(self) -> None:
        """As when the cable is pulled."""
        with contextlib.suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)
        self._wire.close()

    def serve(self) -> None:
        with contextlib.suppress(Gone, OSError):
            while True:
                command, first, second, size = HEADER.unpack(self._exactly(HEADER.size))[:4]
                if self._adbd.slow_s:
                    time.sleep(self._adbd.slow_s)
                self._packet(command.to_bytes(4, "little"), first, second, self._exactly(size))
        for stream in list(self._streams.values()):
            stream.end()
        self._wire.close()

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._wire.recv(size - len(data))
            if not piece:
                raise Gone
            data += piece
            self._adbd.count(len(piece))
        return bytes(data)

    def _packet(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if command in (b"CNXN", b"AUTH"):
            self._greet(second)
        elif command == b"OPEN":
            local, stream = self._new_stream(first)
            threading.Thread(target=self._serve_stream, args=(stream, local, first, data), daemon=True).start()
        elif (found := self._streams.get(second)) is not None:
            if command == b"WRTE":
                found.arrived(data)
            elif command == b"OKAY":
                found.acknowledged(first)
            elif command == b"CLSE":
                found.end()

    def _greet(self, max_data: int) -> None:
        state = self._adbd.state
        if state == "unauthorized":
            self.send(b"AUTH", 1, 0, bytes(20))  # a token to sign, again and again: nobody taps "Allow"
        elif state == "device":
            self.max_data = min(MAX_DATA, max_data) or MAX_DATA
            phone = self._adbd.phone
            banner = (
                f"device::ro.product.name={phone.name};ro.product.model={phone.name};ro.product.device={phone.name};"
                f"features={FEATURES}"
            )
            self.send(b"CNXN", VERSION, MAX_DATA, banner.encode())

    def _serve_stream(self, stream: Stream, local: int, remote: int, destination: bytes) -> None:
        with contextlib.suppress(Gone, OSError):
            service = self._adbd.phone.service(destination.rstrip(b"\0"))
            if service is None:
                self.send(b"CLSE", 0, remote)
                stream.end()
            else:
                self.send(b"OKAY", local, remote)
                service(stream)
        stream.close()
        self._streams.pop(local, None)


class FakeAdbd:
    """The server. Its faults: `unplug`, `plug`, `reboot`, `state`, `unplug_after_bytes` received from now on, and
    `frozen`: it hears everything and says nothing any more."""

    def __init__(self, phone: FakePhone, *, state: State = "device", port: int = 0) -> None:
        self.phone = phone
        self.state: State = state
        self.frozen = False
        self.slow_s = 0.0  # for each packet
        self.port = port
        self._connections: set[Connection] = set()
        self._listener: socket.socket | None = None
        self._left: int | None = None
        self._then: Callable[[], None] = self.unplug

    def __enter__(self) -> FakeAdbd:
        self.plug()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unplug()
        self.phone.kill_all()

    def plug(self) -> None:
        """Take connections."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def unplug(self) -> None:
        """Drop all connections and take no more, until `plug`."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            listener.close()
        self.drop()

    def drop(self) -> None:
        """Drop all connections; the next one is taken."""
        for connection in list(self._connections):
            connection.drop()

    def reboot(self) -> None:
        """All processes end, the boot id changes, and the connection is lost."""
        self.phone.reboot()
        self.drop()

    def unplug_after_bytes(self, count: int) -> None:
        """Pull the cable once this many more bytes have come in."""
        self._left = count

    def count(self, size: int) -> None:
        if self._left is not None:
            self._left -= size
            if self._left <= 0:
                self._left = None
                self.unplug()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                wire, _ = listener.accept()
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = Connection(self, wire)
                self._connections.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        connection.serve()
        self._connections.discard(connection)


def main() -> None:
    """Serve one phone until the end of stdin or an interrupt."""
    parser = argparse.ArgumentParser(description="A phone behind the adb protocol, on 127.0.0.1.")
    parser.add_argument("folder", type=Path, help="the phone's files")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    options = parser.parse_args()
    with FakeAdbd(FakePhone(options.folder), port=options.port) as adbd:
        print(f"adb connect 127.0.0.1:{adbd.port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            sys.stdin.read()


if __name__ == "__main__":
    main()
