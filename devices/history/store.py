"""The store: a folder with a copy of every measurement and score, each under its own hash. Nothing in it is changed.

STORE/store.json says which schema the folder has. STORE/files/2026-11/<hash>.json are the files, by the month in which
they were measured. What is there already is not added twice, and half a file is never seen: it is written aside first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from devices.errors import MeasurementError, StoreError
from devices.measure.measurement import load_measurement
from devices.measure.score import is_score, load_score
from export.strict import parse_json, read_json

SCHEMA = 1
HEAD = "store.json"

Write = Callable[[Path, str], None]  # the whole file or nothing


class HistoryStore:
    """One folder. `write` writes a file aside and renames it."""

    def __init__(self, folder: Path, write: Write) -> None:
        """Open it; it is made with the first file. Raises StoreError for a folder of another kind or schema."""
        self._folder, self._write = folder, write
        head = folder / HEAD
        if head.is_file():
            content = read_json(head, StoreError, "give a folder of `phi-edge history`")
            seen = content.get("schema") if isinstance(content, dict) else content
            if seen != SCHEMA:
                raise StoreError(
                    f"{head}: has schema {seen!r:.60}, and this version knows {SCHEMA}; update phi-edge, or give "
                    "another folder"
                )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder}: is no history and not empty; give a new folder, or one of `phi-edge history`")

    def add(self, paths: Sequence[Path]) -> int:
        """Copy these files in, all of them read strictly first; -> how many were not there. Raises MeasurementError and
        StoreError."""
        texts = [self._checked(path) for path in paths]
        added = 0
        for created_at, data in texts:
            month = created_at[:7] if re.match(r"[0-9]{4}-[0-9]{2}", created_at) else "unknown"
            target = self._folder / "files" / month / f"{hashlib.sha256(data).hexdigest()}.json"
            if target.exists():
                continue
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"{target.parent}: cannot be made ({os.strerror(error.errno or 0)})") from error
            if not (self._folder / HEAD).exists():
                self._write(self._folder / HEAD, json.dumps({"schema": SCHEMA}) + "\n")
            self._write(target, data.decode("utf-8"))
            added += 1
        return added

    def files(self) -> list[Path]:
        """Everything in it, the oldest month first. Raises StoreError where nothing was ever added."""
        if not (self._folder / HEAD).is_file():
            raise StoreError(
                f"{self._folder}: is no history yet; add measurements: phi-edge history "
                f"{shlex.quote(str(self._folder))} FILES"
            )
        return sorted((self._folder / "files").glob("*/*.json"))

    def _checked(self, path: Path) -> tuple[str, bytes]:
        """When it was made, and its bytes."""
        try:
            data = path.read_bytes()
            content = parse_json(data)
        except OSError as error:
            raise MeasurementError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise MeasurementError(f"{path}: is not JSON ({error}); give a file of `phi-edge bench`") from error
        made = load_score(content, path) if is_score(content) else load_measurement(content, path)
        return made.created_at, data
