"""One hostile input, and what must be true of every outcome, whatever the input."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from click.testing import CliRunner, Result

from phi_edge.main import main

LIMIT_S = 30.0  # for one input, on a busy machine
LONGEST_LINE = 4_100


@dataclass(frozen=True)
class Trial:
    """`make` writes the input into a fresh folder and gives the words after `phi-edge`, to be run there.

    `breaks`: the input is broken in a way that matters, so it must be refused. Otherwise only that nothing worse than a
    refusal happens. `claim` is then a text that the refusal must not contain: it would be about something else.
    """

    what: str
    make: Callable[[Path], Sequence[str]]
    breaks: bool
    not_about: str | None = None
    may_write: Sequence[str] = ()  # names in the folder that the command is there to write


@dataclass(frozen=True)
class Kind:
    """A kind of input: `sound` is accepted; `trial` breaks it in some way."""

    title: str
    count: int
    sound: Callable[[Path], Sequence[str]]
    trial: Callable[[random.Random], Trial]


class Hang(BaseException):
    """Not an Exception, so that nothing on the way takes it for a failure of its own."""


@contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Raises Hang in this thread, which is the main one, once the time has passed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fault(trial: Trial, folder: Path) -> str | None:
    """What is wrong with the outcome; None if nothing is. `folder` is fresh, and is the current one."""
    words = list(trial.make(folder))
    before = listing(folder)
    try:
        with time_limit(LIMIT_S):
            result = CliRunner().invoke(main, words, prog_name="phi-edge")
    except Hang:
        return f"no end within {LIMIT_S:.0f} s"
    return result_fault(result, before | set(trial.may_write), folder) or _acceptance(trial, result)


def result_fault(result: Result, known: Set[str], folder: Path) -> str | None:
    """What is wrong with how a command ended, whatever its input. `known` are the names that the folder may have."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"traceback: {type(result.exception).__name__}: {result.exception}"
    if result.exit_code not in (0, 1, 2):
        return f"exit code {result.exit_code}: {result.stderr[-300:]}"
    if (left := sorted(listing(folder) - known)) and result.exit_code == 2:
        return f"left behind: {', '.join(left)}"
    return words_fault(result.stderr, result.exit_code)


def words_fault(stderr: str, exit_code: int) -> str | None:
    """A refusal is one line, and no terminal obeys it."""
    odd = {char for char in stderr if not char.isprintable() and char not in "\n\t"}
    if odd:
        return f"control characters on stderr: {', '.join(map(ascii, sorted(odd)))}"
    if "refused more memory" in stderr:
        return f"asked for memory without a bound: {stderr}"
    errors = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    if exit_code == 2 and (len(errors) != 1 or not stderr.splitlines()[-1].startswith(("Error: ", "  "))):
        return f"a refusal is one line, this is: {stderr[-500:]!r}"
    if any(len(line) > LONGEST_LINE for line in errors):
        return f"a line of {max(map(len, errors))} characters"
    return None


def _acceptance(trial: Trial, result: Result) -> str | None:
    if trial.breaks and result.exit_code == 0:
        return "accepted in silence"
    if trial.breaks and trial.not_about is not None and trial.not_about in result.stderr:
        return f"accepted; what was refused is another thing: {result.stderr!r}"
    return None


def listing(folder: Path) -> set[str]:
    """Every path below the folder, the first part of each alone."""
    return {path.name for path in folder.iterdir()}


def seeded(kind: str, number: int) -> random.Random:
    """The source of chance of one input."""
    return random.Random(f"{kind} {number}")
