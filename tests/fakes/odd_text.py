"""Strings that a shell, a file system or a careless quote would mangle: for fuzzing every way to a device."""

from __future__ import annotations

import random

PIECES = (
    *(
        "'",
        '"',
        "$HOME",
        "`id`",
        "$(reboot)",
        "${x}",
        "\\",
        "\\n",
        "\n",
        "\r\n",
        "\r",
        "\t",
        " ",
        "  ",
        "*",
        "?",
        "[a]",
        "~",
    ),
    *(
        "&",
        "&&",
        ";",
        "|",
        "||",
        "<",
        ">x",
        "(",
        ")",
        "{a,b}",
        "{}",
        "#",
        "!",
        "!!",
        "%s",
        "%",
        "^",
        "=",
        "-n",
        "--",
        "--help",
    ),
    *("é", "日本", "😀", "\u202e", "\ufeff", "\x01", "\x1b[31m", "\x7f", "a" * 50, "the light", "'; rm -rf / #"),
)


def odd_texts(count: int, *, seed: int, nul: bool = False) -> list[str]:
    """Of 0 to 8 pieces each, some empty. `nul`: with NULs too, which no argument and no file name can hold."""
    chance = random.Random(seed)
    pieces = (*PIECES, "\0") if nul else PIECES
    return ["".join(chance.choices(pieces, k=chance.randrange(9))) for _ in range(count)]


def odd_names(count: int, *, seed: int) -> list[str]:
    """As many different file names: no "/", at most 160 bytes."""
    found: dict[str, None] = {}
    while len(found) < count:
        for text in odd_texts(count, seed=seed):
            name = text.replace("/", "")[:40]
            if name not in ("", ".", ".."):
                found[name] = None
        seed += 1
    return list(found)[:count]
