"""The source's hashes come from a process of their own: it ends with the export, and is not needed for the result."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.artifact import MANIFEST
from export.verify.hashing import HashingProcess
from phi_edge.main import main


@pytest.mark.parametrize("there", [True, False], ids=["a process", "no process"])
def test_the_manifest_has_the_digest_of_every_source_file(
    there: bool, random_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = random_checkpoint(num_hidden_layers=1)
    if not there:
        fails = shutil.which("false")
        if fails is None:
            pytest.skip("there is no program that only fails")
        hashing = HashingProcess.__init__

        def start(self: HashingProcess, files: list[Path]) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(sys, "executable", fails)
                hashing(self, files)

        monkeypatch.setattr(HashingProcess, "__init__", start)
    words = ["export", str(checkpoint), str(tmp_path / "out"), "--scheme", "int4-b32"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    files = json.loads((tmp_path / "out" / MANIFEST).read_text())["source"]["files"]
    assert {"config.json", "model.safetensors"} <= set(files)
    for name, file in files.items():
        assert file["sha256"] == hashlib.sha256((checkpoint / name).read_bytes()).hexdigest(), name


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"shard \xff 1\nof 2")
    try:
        file.write_bytes(b"weights")
    except OSError:
        pytest.skip("this file system has no such names")
    with contextlib.closing(HashingProcess([file])) as hashing:
        assert hashing.digest(file) == hashlib.sha256(b"weights").hexdigest()


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with contextlib.closing(HashingProcess([tmp_path / "gone"])) as hashing, pytest.raises(FileNotFoundError):
        hashing.digest(tmp_path / "gone")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes with a name there")
def test_nobody_waits_for_hashes_that_are_not_needed(tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    os.mkfifo(endless)
    with contextlib.closing(HashingProcess([endless])):
        pass  # were it waited for, this test would not end
