"""Text and names in a locale that is not UTF-8, or that are not: the right text, or one clear line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import phi_edge.verbs.run
from devices.drivers.table import open_lab
from devices.leases.choose import lease_device
from phi_edge.main import main
from runtimes.engines.fake import fake_artifact, fake_opener
from runtimes.errors import EngineError
from runtimes.registry import open_runtime, open_tokens
from runtimes.stock.table import find_stock
from runtimes.terminal import typed_text

LAMP = "Is the lämp on? 😀"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact whose engine repeats the prompt."""
    monkeypatch.setattr(
        phi_edge.verbs.run, "open_runtime", lambda artifact, **_: open_runtime(artifact, engine=fake_opener("😀"))
    )
    return fake_artifact(tmp_path / "artifact").folder


@pytest.mark.parametrize("written", [LAMP, "plain", "e\udcff"])
def test_what_was_typed(written: str) -> None:
    """Python decodes a word of the command line with the locale's encoding, and keeps the other bytes (PEP 383)."""
    taken = os.fsencode(written).decode("ascii", "surrogateescape")
    if written.isprintable():
        assert typed_text(taken) == written
    else:
        with pytest.raises(ValueError, match="it is not text in UTF-8"):
            typed_text(taken)


@pytest.mark.parametrize(
    ("words", "name"),
    [(["e\udcff"], "PROMPT"), (["hi", "--system", "\udcff"], "--system"), (["hi", "--stop", "\udcff"], "--stop")],
)
def test_a_word_that_is_no_text_is_one_line(folder: Path, words: list[str], name: str) -> None:
    result = CliRunner().invoke(main, ["run", str(folder), *words])
    assert result.exit_code == 2 and result.stderr.startswith(f"Error: {name}: it is not text in UTF-8; write it in")


@pytest.mark.parametrize(
    ("data", "charset", "refused"),
    [
        (LAMP.encode(), "latin-1", None),
        (b"\xef\xbb\xbf" + LAMP.encode(), "utf-8", None),
        (LAMP[:-2].encode("latin-1"), "latin-1", None),
        ("Is the lämp on?".encode("latin-1"), "utf-8", "the prompt on stdin is not text in UTF-8; save it as UTF-8"),
        (bytes(phi_edge.verbs.run.MOST_PROMPT_BYTES + 1), "utf-8", "has more than 67108864 bytes; give a shorter one"),
    ],
    ids=["UTF-8", "mark", "latin-1", "not UTF-8", "endless"],
)
def test_a_prompt_on_stdin(folder: Path, data: bytes, charset: str, refused: str | None) -> None:
    words = ["run", str(folder), "--raw", "--json"]
    result = CliRunner(charset=charset).invoke(main, [*words, "-"], input=data)
    if refused is None:
        typed = LAMP if "😀".encode() in data else LAMP[:-2]
        both = [result, CliRunner().invoke(main, [*words, typed])]
        counts = [json.loads(each.stdout.splitlines()[-1])["usage"]["prompt"] for each in both]
        assert counts[0] == counts[1] == len(typed.encode())
    else:
        assert result.exit_code == 2 and refused in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("charset", ["cp1252", "latin-1", "ascii"])
def test_what_the_output_s_encoding_does_not_have_is_escaped(tiny_onnx: Path, tmp_path: Path, charset: str) -> None:
    """A file or a pipe on Windows has such an encoding."""
    (tmp_path / "模型").symlink_to(tiny_onnx)
    command = [sys.executable, "-P", "-m", "phi_edge", "check", str(tmp_path / "模型")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": charset}, capture_output=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert "模型".encode("ascii" if charset != "ascii" else "utf-8", "backslashreplace") in done.stdout


def test_a_path_that_no_engine_would_find_is_one_line(tmp_path: Path) -> None:
    """Its bytes are no UTF-8, which is how onnxruntime, ExecuTorch and llama.cpp take a path."""
    artifact = dataclasses.replace(fake_artifact(tmp_path / "artifact"), folder=Path(os.fsdecode(b"art\xe4fact")))
    with pytest.raises(EngineError, match="the engines take paths in UTF-8 alone; rename it"):
        open_tokens(artifact, engine=fake_opener("Well."))
    theirs = tmp_path / os.fsdecode(b"mod\xe4l")
    theirs.mkdir()
    for name in ("model.pte", "tokenizer.json"):
        (theirs / name).touch()
    with pytest.raises(EngineError, match="the engines take paths in UTF-8 alone; rename it"):
        find_stock(theirs)


@pytest.mark.skipif(sys.platform == "win32", reason="a path there is UTF-16")
def test_a_job_on_such_a_path_has_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with lease_device(open_lab(None), "local", "bench \udce4 on local") as lease:
        lease.check()
