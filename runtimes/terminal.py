"""Foreign text on a terminal: what a device, an artifact, a template or a model says must not be obeyed as a command.

An escape sequence can clear the screen, set a title or hide a line; a line break can forge an error of ours; a mark of
direction can turn a name around.
"""

from __future__ import annotations

import os
import re

MOST_CHARACTERS = 4000  # of one line
REPLACEMENT = "\ufffd"
# Control characters but tab and line ends; what changes the direction of a text; half characters.
_COMMANDS = re.compile(
    "\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_HALF = re.compile("[\ud800-\udfff]")


def typed_text(text: str) -> str:
    """What a person typed, as Python took it from the command line or the terminal. Bytes that the locale's encoding
    does not have come as half characters; they are read as UTF-8. Raises ValueError where they are something else."""
    if not _HALF.search(text):
        return text
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError as error:
        raise ValueError("it is not text in UTF-8; write it in UTF-8, or set the locale to the terminal's") from error


def one_line(text: str) -> str:
    """One line of printable characters, of limited length: for an error, a name, a finding."""
    line = " ".join(text[: 2 * MOST_CHARACTERS].split())
    shown = "".join(char if char.isprintable() else REPLACEMENT for char in line[:MOST_CHARACTERS])
    return shown if len(line) <= MOST_CHARACTERS else shown + "…"


def harmless(text: str) -> str:
    """Text of any number of lines, such as an answer or a table, without what a terminal would obey."""
    return _COMMANDS.sub(REPLACEMENT, text)
