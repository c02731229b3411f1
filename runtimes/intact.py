"""Whether an artifact's files are as they were exported, before an engine gets them.

At a damaged file an engine's library may crash, or answer nonsense without a word. Hashing takes about a second a
gigabyte: that a large artifact is intact is remembered for as long as no file's size, time or inode changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from export.artifact import Artifact, verify
from runtimes.system.cache_folder import cache_folder

SMALL_BYTES = 1 << 26  # what is hashed every time: it takes less than a tenth of a second


def check_intact(artifact: Artifact) -> None:
    """Raises ArtifactError at the first file that is another than the manifest says."""
    mark = _mark(artifact)
    if mark is not None and mark.exists():
        return
    verify(artifact)
    if mark is not None:
        with contextlib.suppress(OSError):  # then the next call hashes it again
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def _mark(artifact: Artifact) -> Path | None:
    """The file that says so by being there, in the cache folder of `bundle` too; None where nothing is remembered."""
    state = [(name, (artifact.folder / name).stat()) for name in artifact.manifest.files]
    if sum(stat.st_size for _, stat in state) < SMALL_BYTES:
        return None
    files = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in state]
    seen = json.dumps([os.fspath(artifact.folder.resolve()), artifact.manifest.digest(), files])
    try:
        return cache_folder() / "intact" / hashlib.sha256(seen.encode()).hexdigest()
    except RuntimeError:  # no home
        return None
