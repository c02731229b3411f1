"""What a job has finished of one cell: a file that only grows, one JSON line for each thing that happened.

A line is on the disk before the job goes on. What a kill or a full disk cut off, the last line without an end, is
dropped by the next job, which goes on with what is there. No line is ever changed or removed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from devices.errors import StoreError
from devices.measure.measurement import Dropped, Repetition
from export.strict import build, parse_json
from runtimes.system.conditions import Conditions

SCHEMA = 1
T = TypeVar("T")


@dataclass
class Finished:
    """What the lines of a cell's file add up to."""

    sessions: int = 0
    before: Conditions | None = None  # the first session's
    after: Conditions | None = None  # once everything is finished
    repetitions: list[Repetition] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class CellStore:
    """The file of one cell. `identity` says what the cell measures: a file of another is refused."""

    def __init__(self, path: Path, identity: Mapping[str, object]) -> None:
        """Read what is there. Raises StoreError."""
        self._path = path
        self._identity = json.loads(json.dumps(identity))
        self.finished = Finished()
        self._lines = 0
        self._read()

    def started(self, before: Conditions) -> int:
        """Note that a session begins; -> its number."""
        self.finished.before = self.finished.before or before
        self._append({"session": self.finished.sessions, "before": dataclasses.asdict(before)})
        self.finished.sessions += 1
        return self.finished.sessions - 1

    def repeated(self, repetition: Repetition) -> None:
        """Note a finished repetition."""
        self._append({"repetition": dataclasses.asdict(repetition)})
        self.finished.repetitions.append(repetition)

    def dropped(self, dropped: Dropped) -> None:
        """Note that the device was not ready for one."""
        self._append({"dropped": dataclasses.asdict(dropped)})
        self.finished.dropped.append(dropped)

    def failed(self, kind: str, reason: str) -> None:
        """Note an attempt that came to nothing."""
        self._append({"failed": kind, "reason": reason})
        self.finished.failures.append(reason)

    def ended(self, after: Conditions) -> None:
        """Note that every repetition is there."""
        self._append({"after": dataclasses.asdict(after)})
        self.finished.after = after

    def _append(self, line: Mapping[str, object]) -> None:
        text = json.dumps(line, allow_nan=False) + "\n"
        if self._lines == 0:
            text = json.dumps({"schema": SCHEMA, "cell": self._identity}) + "\n" + text
        try:
            with self._path.open("ab") as file:
                end = file.tell()
                try:
                    file.write(text.encode())
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise StoreError(
                f"{self._path}: cannot be written ({error.strerror}); what was finished before is in it: make room, "
                "and give the same command again"
            ) from error
        self._lines += 1

    def _read(self) -> None:
        try:
            data = self._path.read_bytes() if self._path.exists() else b""
            whole = data.rfind(b"\n") + 1
            if whole < len(data):  # the end of a killed job's last line is missing
                os.truncate(self._path, whole)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be read ({error.strerror})") from error
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                content = parse_json(line)
            except ValueError as error:
                raise self._damaged(number, str(error)) from error
            if not isinstance(content, dict):
                raise self._damaged(number, "it is no object")
            if number == 1:
                self._check_head(content)
            else:
                self._take(content, number)
            self._lines = number

    def _check_head(self, head: Mapping[str, Any]) -> None:
        if head.get("schema") != SCHEMA:
            raise StoreError(
                f"{self._path}: has schema {head.get('schema')!r:.60}, and this version knows {SCHEMA}; update "
                "phi-edge, or give another --out-dir"
            )
        if head.get("cell") != self._identity:
            seen = head.get("cell")
            known = seen if isinstance(seen, dict) else {}
            differing = [name for name, value in self._identity.items() if known.get(name) != value]
            raise StoreError(
                f"{self._path}: was made with another {', '.join(differing) or 'cell'}; give another --out-dir, and "
                "both are kept"
            )

    def _take(self, line: Mapping[str, Any], number: int) -> None:
        where = f"{self._path}: line {number}"
        match sorted(line):
            case ["before", "session"]:
                before = build(Conditions, line["before"], where, StoreError)
                self.finished.before = self.finished.before or before
                self.finished.sessions += 1
            case ["repetition"]:
                self.finished.repetitions.append(build(Repetition, line["repetition"], where, StoreError))
            case ["dropped"]:
                self.finished.dropped.append(build(Dropped, line["dropped"], where, StoreError))
            case ["failed", "reason"]:
                self.finished.failures.append(str(line["reason"]))
            case ["after"]:
                self.finished.after = build(Conditions, line["after"], where, StoreError)
            case keys:
                raise self._damaged(number, f"its keys are {', '.join(keys)[:60]}")

    def _damaged(self, number: int, reason: str) -> StoreError:
        return StoreError(f"{self._path}: line {number} is damaged ({reason}); move the file away, and its cell is new")
