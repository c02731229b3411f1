"""How a command ends when it does not succeed: one line on stderr and an exit code, never a traceback.

UserError       exit 2: the command could not do its work. What was seen, what is allowed, what to do
Failed          exit 1: it did its work and the outcome is bad (a budget missed, a check failed, a demo step failed)
Interrupted     exit 130: Ctrl-C
Anything else is a bug of ours: a traceback, and exit 70 (main.py), so that no CI takes it for a missed limit.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import IO, Any

import click

from devices.errors import DeviceError
from export.errors import DelegationError, ExportError
from runtimes import terminal
from runtimes.errors import RuntimesError, TransportError

ROOMS = {"export", "runtimes", "devices", "phi_edge"}
STDOUT, STDERR = 1, 2

UNEXPECTED = re.compile(r"unexpected extra arguments? \((.*)\)", re.DOTALL)  # what click says

NUMBER = re.compile(r"is not a valid (integer|float)( range)?")  # click's names of types


class UserError(click.ClickException):
    """The command could not do its work."""

    exit_code = 2

    def format_message(self) -> str:
        """The message's first line, and what it quotes of a log, indented. A message may quote a device or a file."""
        first, *quoted = self.message.split("\n  ")
        return "\n  ".join([terminal.one_line(first), *(terminal.one_line(line) for line in quoted)])

    def show(self, file: IO[Any] | None = None) -> None:
        with lost_if_unread():
            super().show(file)


class Failed(UserError):
    """The command did its work and the outcome is bad. The message is empty if the output has the reason already."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        if self.message:
            super().show(file)


class Interrupted(click.ClickException):
    """The user ended it."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("interrupted")

    def show(self, file: IO[Any] | None = None) -> None:
        with lost_if_unread():
            click.echo("Interrupted", err=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C, also in the middle of an import, where numpy makes an ImportError of it, becomes Interrupted."""
    try:
        yield
    except (KeyboardInterrupt, click.Abort) as stop:
        raise Interrupted from stop
    except ImportError as error:
        if _was_interrupted(error):
            raise Interrupted from error
        raise


@contextmanager
def allowed_by_system() -> Iterator[None]:
    """What the system refuses becomes a UserError: click ends a closed pipe with 1, which is a missed limit here."""
    try:
        yield
    except OSError as error:
        raise UserError(system_error(error)) from error


@contextmanager
def one_line(verb: str, extra: str) -> Iterator[None]:
    """The one place where the errors of the rooms become one line for the user of `verb`.

    `extra` is what `pip install phi-edge[...]` brings for this verb.
    """
    try:
        with interruptible(), allowed_by_system():
            yield
    except DelegationError as error:
        raise Failed(_flat(error)) from error
    except TransportError as error:
        raise UserError(str(error)) from error
    except (DeviceError, ExportError, RuntimesError) as error:
        raise UserError(_flat(error)) from error
    except ModuleNotFoundError as missing:
        name = str(missing.name).partition(".")[0]
        if name in ROOMS:
            raise  # a module of ours is our fault
        raise UserError(missing_module(verb, extra, name)) from missing
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise UserError("the system refused more memory (ulimit -v?); raise the limit, or free some") from error


def _flat(error: Exception) -> str:
    return " ".join(str(error).split("\n"))


def _was_interrupted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def system_error(error: OSError) -> str:
    """What the system refused. A file where it names one; else it can only be our output or memory."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENOMEM:
        return "the system refused more memory (ulimit -v?); raise the limit, or free some"
    if error.filename is not None:
        # Of a copy, the file that it is written to is the second one.
        full = error.filename2 is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return f"{os.fsdecode(error.filename2 if full else error.filename)}: {reason}"
    if error.errno == errno.EPIPE:
        silence(STDOUT)
        return "whoever read the output has gone"
    if error.errno in (errno.ENOSPC, errno.EBADF, errno.EIO, errno.EDQUOT, errno.EFBIG):
        silence(STDOUT)
        return f"the output cannot be written ({reason})"
    return f"the system refused: {reason}"


@contextmanager
def lost_if_unread() -> Iterator[None]:
    """What is written to stderr is lost where nobody reads it; the exit code stays as it is."""
    try:
        yield
    except OSError:
        silence(STDERR)


def silence(descriptor: int) -> None:
    """Let nothing more be written there, so that Python's own flush at the end does not fail once more and end the
    process with 120."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def missing_module(verb: str, extra: str, module: str) -> str:
    """The one line for a library that is not installed."""
    needed = "phi-edge" if module in always_installed() else f"phi-edge[{extra}]"
    return f"`phi-edge {verb}` needs {module}, which is not installed: pip install '{needed}'"


def always_installed() -> set[str]:
    """The modules of the libraries that every installation of phi-edge brings."""
    wanted = [line for line in importlib.metadata.requires("phi-edge") or () if "extra ==" not in line]
    return {re.split(r"[^\w.-]", line)[0].replace("-", "_").lower() for line in wanted}


def usage_error(error: click.UsageError, command: str, hint: str | None = None) -> UserError:
    """click's four lines as one, with the option or the verb that was probably meant. `hint` knows it better."""
    message = error.format_message().rstrip(".")
    if isinstance(error, click.BadParameter) and error.param is not None:
        name = error.param.opts[-1] if isinstance(error.param, click.Option) else error.param.human_readable_name
        message = f"{name} is missing" if isinstance(error, click.MissingParameter) else f"{name}: {error.message}"
    elif isinstance(error, click.NoSuchOption):
        near = did_you_mean(error.option_name, error.possibilities or ())
        message = f"unknown option {error.option_name}{near if hint is None else ''}"
    elif (words := UNEXPECTED.search(message)) is not None:
        message = f"unexpected words: {words[1]}"
    message = NUMBER.sub(lambda found: f"is no {'whole ' if found[1] == 'integer' else ''}number", message)
    if hint is not None:
        message = f"{message.rstrip('.')}; {hint}"
    return UserError(f"{message.rstrip('.')}; see `{command} --help`")


def did_you_mean(word: str, known: Any) -> str:
    """`; did you mean export?`, or nothing where no known word is near."""
    close = get_close_matches(word, list(known), n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ""
