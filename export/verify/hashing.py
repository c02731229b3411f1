"""SHA-256 of a source's files, in a process of its own (`python -m export.verify.hashing`) beside the export.

A thread of the exporting process would wait for Python's lock while the model is traced, and could not be ended: an
export that fails would have to wait for gigabytes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from export.artifact import sha256_file


class HashingProcess:
    """Hashes files until it is done or closed."""

    def __init__(self, files: Sequence[Path]) -> None:
        command = [sys.executable, "-P", "-m", "export.verify.hashing"]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._child.stdin as stdin:
            stdin.write(json.dumps([str(file) for file in files]).encode())

    def digest(self, file: Path) -> str:
        """A file's SHA-256, as hex. Waits for the process; what that did not hash, is hashed here. Raises OSError."""
        return self._digests.get(str(file)) or sha256_file(file)

    @functools.cached_property
    def _digests(self) -> Mapping[str, str]:
        assert self._child.stdout is not None
        answer = self._child.stdout.read()
        return dict(json.loads(answer)) if self._child.wait() == 0 else {}

    def close(self) -> None:
        """End the process, if it is still there."""
        with self._child:
            self._child.kill()


def main() -> None:
    """A JSON list of files on stdin, an object of their digests on stdout."""
    files = json.load(sys.stdin)
    json.dump({file: sha256_file(Path(file)) for file in files}, sys.stdout)


if __name__ == "__main__":
    main()
