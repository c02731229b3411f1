"""An agent's process, line by line, without the host's side of the protocol: for tests of what an agent answers."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from typing import Any

EVENTS = {"ready", "token", "done", "scored", "error", "pong"}


class Talk:
    """Start the command; write commands and read events. Its log goes to this process's stderr."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def send(self, do: str, request: int, **fields: Any) -> None:
        """One command."""
        self.raw(json.dumps({"do": do, "request": request, **fields}).encode())

    def raw(self, line: bytes) -> None:
        """Any line."""
        self.stdin.write(line + b"\n")
        self.stdin.flush()

    def next(self) -> dict[str, Any]:
        """The next event."""
        line = self.stdout.readline()
        assert line.endswith(b"\n"), "the agent ended"
        message = json.loads(line)
        assert message["event"] in EVENTS
        return dict(message)

    def until(self, event: str, request: int | None) -> list[dict[str, Any]]:
        """All events to the first one of this kind with this request's number."""
        lines = []
        while True:
            lines.append(self.next())
            if (lines[-1]["event"], lines[-1].get("request")) == (event, request):
                return lines

    def answer(self, request: int) -> list[dict[str, Any]]:
        """The events of one generate, to its end, with nothing between them."""
        lines = []
        while True:
            lines.append(self.next())
            assert lines[-1]["request"] == request
            if lines[-1]["event"] in ("done", "error"):
                return lines

    def end(self) -> int:
        """Close its input; its exit code."""
        self.stdin.close()
        code = self.process.wait(60)
        self.stdout.close()
        return code

    def kill(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
