"""JSON lines, each an object, with the place of every fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.errors import OptionError
from export.strict import MOST_BYTES, parse_json


def read_text(path: Path) -> str:
    """A text file in UTF-8, of MOST_BYTES at most. Raises OptionError."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise OptionError(f"{path}: has more than {MOST_BYTES} bytes; give a shorter text")
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror}); give a text file") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{path}: is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from error


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """As parse_lines, of a whole file."""
    return parse_lines(read_text(path), path)


def parse_lines(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON lines out of `path`, each with its place, `FILE: line N`; empty lines are skipped.

    Raises OptionError.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            content = parse_json(line.encode())
        except ValueError as error:
            raise OptionError(f"{where}: is not JSON ({error})") from error
        if not isinstance(content, dict):
            raise OptionError(f"{where}: is a {type(content).__name__}; give one JSON object a line")
        yield where, content
