"""What runs on a Windows device for each call of host.py: one command from stdin, its answer on stdout.

It is sent as text and run by the device's own Python, so it imports nothing of ours. What follows it on stdin is the
data. A program is started from its words, without a shell.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20
RENAME_TRIES, RENAME_WAIT_S = 20, 0.25  # a virus scanner may have a file open that was just written
SSH_FAILED = 255
FAILED = 1


def main(command: dict[str, Any]) -> int:
    """Run the command, and return the exit code."""
    try:
        return int(COMMANDS[command.pop("do")](**command))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        print(f"{reason}: {command.get('path', '')}".encode("ascii", "backslashreplace").decode(), file=sys.stderr)
        return FAILED


def run(words: list[str]) -> int:
    """Run a program with our three pipes. As with `env`, leading words NAME=value go into its environment."""
    environment = dict(os.environ, PYTHONUTF8="1", PYTHONDONTWRITEBYTECODE="1")
    if words and words[0] == "env":
        words = words[1:]
        while words and "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
    sys.stdout.flush()
    code = subprocess.Popen(words, stdin=0, stdout=1, stderr=2, env=environment).wait()
    if 0 <= code < SSH_FAILED:
        return code
    print(f"ended with exit code {code & 0xFFFFFFFF:#x}", file=sys.stderr)
    return SSH_FAILED - 1


def folder(path: str) -> int:
    """Make a folder; a relative path starts at the home folder. Answers the absolute path, with forward slashes."""
    made = Path.home() / path
    made.mkdir(parents=True, exist_ok=True)
    return say(made.as_posix())


def exist(path: str, names: list[str]) -> int:
    """Answers which files of a folder are there."""
    return say([(Path(path) / name).is_file() for name in names])


def size(path: str) -> int:
    """Answers the file's size in bytes; 0 where it is not there."""
    return say(Path(path).stat().st_size if Path(path).exists() else 0)


def append(path: str, offset: int) -> int:
    """Write the data from `offset` on. A file that is longer than `offset` was another one: its rest is cut off."""
    with Path(path).open("r+b" if Path(path).exists() else "wb") as out:
        out.truncate(offset)
        out.seek(offset)
        while True:
            block = os.read(0, BLOCK_BYTES)
            if not block:
                break
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    return 0


def sha256(path: str) -> int:
    """Answers the SHA-256 of a file's content."""
    return say(digest(path))


def verify_and_rename(path: str, to: str, wanted: str) -> int:
    """Rename it, if its content has this hash. It first gets a name of this process's own: so when two clients push the
    same file, neither can put the other's incomplete file in place."""
    own = f"{path}.{os.getpid()}"
    try:
        replace(path, own)
    except FileNotFoundError:  # another client was faster: what it renamed may be complete
        return say(Path(to).is_file() and digest(to) == wanted)
    fits = digest(own) == wanted
    replace(own, to) if fits else remove(own)
    return say(fits)


def replace(path: str, to: str) -> int:
    """Rename `path` to `to`, and overwrite what was there."""
    for left in reversed(range(RENAME_TRIES)):
        try:
            Path(path).replace(to)
        except PermissionError:
            if not left:
                raise
            time.sleep(RENAME_WAIT_S)
        else:
            break
    return 0


def remove(path: str) -> int:
    """Remove a file, or a folder with everything in it. Without effect if `path` does not exist."""
    if Path(path).is_dir():
        shutil.rmtree(path)
    elif Path(path).exists():
        Path(path).unlink()
    return 0


def free(path: str) -> int:
    """Answers how many bytes may still be written there."""
    return say(shutil.disk_usage(path).free)


def digest(path: str) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with Path(path).open("rb") as source:
        for block in iter(lambda: source.read(BLOCK_BYTES), b""):
            found.update(block)
    return found.hexdigest()


def say(value: object) -> int:
    """Write the answer: one line of JSON."""
    print(json.dumps(value))
    return 0


COMMANDS: dict[str, Any] = {
    each.__name__: each for each in (run, folder, exist, size, append, sha256, verify_and_rename, replace, remove, free)
}
