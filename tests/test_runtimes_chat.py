"""A conversation on a terminal: its commands, and its way on when the context is full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtimes.engines.fake import fake_artifact

pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")

CONVERSATION = """
import sys, phi_edge.verbs.run
from phi_edge.main import main
from runtimes import open_runtime
from runtimes.engines.fake import fake_opener
phi_edge.verbs.run.open_runtime = lambda artifact, **_: open_runtime(artifact, engine=fake_opener("Well."))
main(["run", *sys.argv[1:]])
"""
FULL = "[the conversation is full: its "


def converse(
    folder: Path, *lines: str | bytes, options: tuple[str, ...] = (), locale: str = "utf-8"
) -> tuple[str, str]:
    """stdout and stderr of a conversation whose user types these lines."""
    terminal, other = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", CONVERSATION, str(folder), *options],
        stdin=other,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": locale},
    )
    os.close(other)
    os.write(terminal, b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    out, err = child.communicate(timeout=60)
    os.close(terminal)
    assert child.returncode == 0, err
    return out, err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fake_artifact(tmp_path / "artifact").folder


@pytest.mark.parametrize("options", [(), ("--chat",)], ids=["plain", "chat"])
def test_a_conversation_without_a_prompt(folder: Path, options: tuple[str, ...]) -> None:
    assert converse(folder, "Hello", "And what of this? <|end|>", "", options=options)[0] == "Well.\nWell.\n"


@pytest.mark.parametrize("ending", ["/bye", "/exit", "/quit", "exit", "QUIT", " /bye ", ""])
def test_an_ending_is_not_answered(folder: Path, ending: str) -> None:
    assert converse(folder, "Hello", ending)[0] == "Well.\n"


def test_commands_are_not_answered(folder: Path) -> None:
    out, err = converse(folder, "/help", "/clera", "/clear", "Is /etc/hosts a file?", "/bye")
    assert out == "Well.\n"
    assert err.count("forget the conversation so far") == 2
    assert "Error: unknown command /clera; these are known:" in err
    assert "The conversation starts anew." in err


@pytest.mark.parametrize("locale", ["utf-8:strict", "utf-8:surrogateescape"])
def test_a_line_that_is_no_text_is_refused_and_the_conversation_goes_on(folder: Path, locale: str) -> None:
    out, err = converse(folder, b"Is the l\xe4mp on?", "Is the lämp on?", "/bye", locale=locale)
    assert out == "Well.\n" and err.count("Error: this line is not text in UTF-8; set the terminal to UTF-8") == 1


@pytest.mark.parametrize("system", [(), ("--system", "Be kind")], ids=["", "system"])
def test_a_full_context_drops_the_oldest_turns_and_says_so(tmp_path: Path, system: tuple[str, ...]) -> None:
    folder = fake_artifact(tmp_path / "artifact", context_tokens=96).folder
    out, err = converse(folder, *["Is the lamp on?"] * 12, "/bye", options=system)
    assert out == "Well.\n" * 12
    assert "Error" not in err and "length" not in err
    assert FULL in err
    assert ("the system message is kept" in err) == bool(system)


def test_what_was_estimated_too_short_is_dropped_when_the_runtime_refuses_it(tmp_path: Path) -> None:
    folder = fake_artifact(tmp_path / "artifact", context_tokens=96).folder
    out, err = converse(folder, "a", "ü" * 36, "b", "/bye")  # two tokens each
    assert out == "Well.\n" * 3
    assert FULL in err


def test_a_message_that_no_context_takes_is_refused_and_the_conversation_goes_on(tmp_path: Path) -> None:
    folder = fake_artifact(tmp_path / "artifact", context_tokens=96).folder
    out, err = converse(folder, "a", "x" * 200, "b", "/bye")
    assert out == "Well.\n" * 2
    assert "Error: the prompt has 206 tokens; a context of 96 takes at most 95" in err
    assert FULL not in err


def test_after_clear_nothing_is_left_to_drop(tmp_path: Path) -> None:
    folder = fake_artifact(tmp_path / "artifact", context_tokens=96).folder
    lines = [line for _ in range(6) for line in ("Is the lamp on?", "/clear")]
    assert FULL not in converse(folder, *lines, "/bye")[1]


def test_a_model_without_a_template_cannot_converse(tmp_path: Path) -> None:
    folder = fake_artifact(tmp_path / "artifact", chat_template=None).folder
    with pytest.raises(AssertionError, match="has no chat template, so it cannot converse; give a prompt"):
        converse(folder, "Hello")
