"""Leases of one machine's jobs, in a file of SQLite (in WAL mode, so that a reader waits for no writer).

Time is the machine's own since its boot, which all its processes share and nobody sets: a wall clock that jumps ends no
lease. A row of an earlier boot is dead, and so is one whose process has ended.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sqlite3
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from devices.errors import LeaseError
from devices.leases.lease import TIMES, Held, Holder, LeaseTimes
from devices.leases.process import has_ended, identity
from runtimes.system.boot import boot_id, restarted

SCHEMA = 1
LOCK_WAIT_S = 30.0  # a transaction of ours takes a millisecond
_TABLE = """CREATE TABLE lease (
    device TEXT PRIMARY KEY, token TEXT NOT NULL, job TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
    since TEXT NOT NULL, process TEXT, boot TEXT, beat_s REAL NOT NULL
) STRICT"""


class SqliteStore:
    """See devices.leases.lease.Store. The file and its folder are made when they are first needed."""

    def __init__(self, path: Path, times: LeaseTimes = TIMES) -> None:
        self._path, self._times = path, times

    def take(self, device: str, token: str, job: str) -> Held | None:
        """See Store.take."""
        with self._transaction() as rows:
            row = rows.execute("SELECT * FROM lease WHERE device = ?", (device,)).fetchone()
            if row is not None and not self._is_dead(row):
                return _held(row)
            since = datetime.now(UTC).isoformat(timespec="seconds")
            rows.execute(
                "REPLACE INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    device, token, job, platform.node(), os.getpid(), since, identity(), boot_id(), time.monotonic(),
                ),
            )  # fmt: skip
        return None

    def beat(self, device: str, token: str) -> bool:
        """See Store.beat."""
        with self._transaction() as rows:
            update = "UPDATE lease SET beat_s = ? WHERE device = ? AND token = ?"
            return rows.execute(update, (time.monotonic(), device, token)).rowcount == 1

    def release(self, device: str, token: str) -> None:
        """See Store.release."""
        with self._transaction() as rows:
            rows.execute("DELETE FROM lease WHERE device = ? AND token = ?", (device, token))

    def held(self) -> Sequence[Held]:
        """See Store.held."""
        if not self._path.exists():
            return []
        with self._transaction() as rows:
            found = rows.execute("SELECT * FROM lease ORDER BY device").fetchall()
        return [_held(row) for row in found if not self._is_dead(row)]

    def close(self) -> None:
        """Nothing stays open between two calls."""

    def _is_dead(self, row: sqlite3.Row) -> bool:
        if restarted(row["boot"], boot_id()) or has_ended(row["process"]):
            return True
        return time.monotonic() - float(row["beat_s"]) > self._times.dead_s

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and no other writer meanwhile."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self._path, timeout=LOCK_WAIT_S, isolation_level=None)) as rows:
                rows.row_factory = sqlite3.Row
                self._begin(rows)
                try:
                    yield rows
                    rows.execute("COMMIT")
                finally:
                    if rows.in_transaction:
                        rows.execute("ROLLBACK")
        except (sqlite3.Error, OSError) as error:
            raise LeaseError(f"{self._path}: leases cannot be kept there ({error}); free the disk or name another "
                             "file in the lab file: leases.file") from error  # fmt: skip

    def _begin(self, rows: sqlite3.Connection) -> None:
        """Take the lock. SQLite waits for it by itself, but not while another connection makes the file: two that wait
        for one another there would never end."""
        until_s = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                if self._version(rows) != SCHEMA:
                    self._create(rows)
                # Nothing waits for the disk: a lease is worth nothing after a restart, and while an export writes
                # gigabytes to the same disk, a flush takes so long that a living job would be taken for dead.
                rows.execute("PRAGMA synchronous = OFF")
                rows.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until_s:
                    raise
                if rows.in_transaction:
                    rows.execute("ROLLBACK")
                time.sleep(0.01)

    def _version(self, rows: sqlite3.Connection) -> int:
        found = int(rows.execute("PRAGMA user_version").fetchone()[0])
        if found > SCHEMA:
            raise LeaseError(
                f"{self._path}: has schema {found}, and this version knows {SCHEMA}; update phi-edge, or name another "
                "file in the lab file: leases.file"
            )
        return found

    def _create(self, rows: sqlite3.Connection) -> None:
        rows.execute("PRAGMA journal_mode = WAL")
        rows.execute("BEGIN IMMEDIATE")
        if self._version(rows) == 0:  # no other process was faster
            rows.execute(_TABLE)
            rows.execute(f"PRAGMA user_version = {SCHEMA}")
        rows.execute("COMMIT")


def _held(row: sqlite3.Row) -> Held:
    holder = Holder(job=row["job"], host=row["host"], pid=row["pid"], since=row["since"])
    return Held(device=row["device"], holder=holder, silent_s=max(0.0, time.monotonic() - row["beat_s"]))
