"""The local transport: a worker process on this machine, read line by line, each wait with a deadline."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from devices.errors import DeviceError, WorkerError
from devices.lab import Device

Message = Mapping[str, Any]
LAST_LINES = 8


class LocalWorker:
    """A worker process: started on construction, killed on close if it does not end by itself.

    `until_s` is when it must have finished all its work, on time.monotonic's clock.
    """

    def __init__(self, device: Device, artifact: Path, threads: int | None, until_s: float) -> None:
        command = [*(device.worker or (sys.executable, "-m", "devices.worker")), str(artifact)]
        if threads is not None:
            command += ["--threads", str(threads)]
        self._until_s = until_s
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by close)
        self.started_s = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            self._log.close()
            raise WorkerError(f"the worker {command[0]} cannot be started ({error.strerror})") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        self._lines: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=_read, args=(self._stdout, self._lines), daemon=True)
        self._reader.start()

    def ready(self) -> tuple[float, Message]:
        """Wait for the ready line: seconds since the process was started, and what it says."""
        at_s, message = self._next("loading the artifact")
        if message.get("event") != "ready":
            raise self._failure(f"the worker's first line is not its ready line but {message!r:.80}")
        return at_s - self.started_s, message

    def ask(self, request: Message) -> tuple[list[Message], Message]:
        """Send one request and collect its token messages and its done message."""
        # A worker that is gone is found, and told with its last lines, when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(json.dumps(request) + "\n")
            self._stdin.flush()
        tokens: list[Message] = []
        while True:
            _, message = self._next("generating")
            if message.get("event") == "done":
                return tokens, message
            if message.get("event") != "token":
                raise self._failure(f"the worker said {message!r:.80} in the middle of an answer")
            tokens.append(message)

    def finish(self) -> None:
        """Let the worker end by itself; a worker that crashes at its end is an error too."""
        self._stdin.close()
        try:
            code = self._process.wait(max(0.0, self._until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._failure("the worker was still running at its deadline, after its answer") from None
        if code != 0:
            raise self._failure("the worker failed at its end")

    def close(self) -> None:
        """Kill it if it still runs, and free what it held. Safe to call twice."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        for stream in (self._stdout, self._log):
            stream.close()
        with contextlib.suppress(BrokenPipeError):  # it was killed with a request unread
            self._stdin.close()

    def _next(self, doing: str) -> tuple[float, Message]:
        try:
            at_s, line = self._lines.get(timeout=max(0.0, self._until_s - time.monotonic()))
        except queue.Empty:
            raise self._failure(f"the worker was killed at its deadline while {doing}; raise --deadline-s") from None
        if not line:
            raise self._failure(f"the worker ended while {doing}")
        try:
            message = json.loads(line)
        except ValueError:
            raise self._failure(f"the worker printed {line!r:.80} on its protocol's stdout") from None
        if not isinstance(message, dict):
            raise self._failure(f"the worker printed {line!r:.80} on its protocol's stdout")
        if message.get("event") == "error":
            raise DeviceError(str(message.get("message")))
        return at_s, message

    def _failure(self, message: str) -> WorkerError:
        """The error with the exit code and the last lines of the log; the process is gone afterwards."""
        try:
            code: int | None = self._process.wait(timeout=1.0 if "ended" in message else 0.0)
        except subprocess.TimeoutExpired:
            code = None
            self._process.kill()
            self._process.wait()
        self._log.seek(0)
        last_lines = [line.rstrip() for line in self._log.readlines() if line.strip()][-LAST_LINES:]
        return WorkerError(f"{message}{_ended(code)}", exit_code=code, last_lines=last_lines)


def _read(stdout: TextIO, lines: queue.SimpleQueue[tuple[float, str]]) -> None:
    for line in stdout:
        lines.put((time.perf_counter(), line))
    lines.put((time.perf_counter(), ""))


def _ended(code: int | None) -> str:
    if code is None:
        return ""
    if code < 0:
        cause = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f" (killed by {signal.Signals(-code).name}{cause})"
    return f" (exit code {code})"
