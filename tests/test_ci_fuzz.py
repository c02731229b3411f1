"""ci/fuzz, without a fuzzer: its targets take their own sound inputs and what is made of them, and notice a fault."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from hostile import artifacts
from hostile.cheap import make_cheap

from ci.fuzz import native
from ci.fuzz.fuzz import PYTHON
from ci.fuzz.targets import TARGETS, by_command
from export.artifact import MANIFEST

TRIES = 3  # for each target
MOST_BYTES = 1 << 18


def plain(data: bytes, most: int) -> bytes:
    """In the place of libFuzzer's own mutation."""
    return data[::-1][:most]


def test_every_target_is_fuzzed() -> None:
    assert set(PYTHON) == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_its_inputs_end_well(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cheap(monkeypatch.setattr)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # a target sets it
    target, rng = TARGETS[name], random.Random(name)
    seeds = list(target.seeds())
    inputs = [seeds[0], *(target.form(rng.choice(seeds), MOST_BYTES, rng, plain) for _ in range(TRIES))]
    assert len(set(inputs)) > 1 and all(len(data) <= MOST_BYTES for data in inputs)
    for data in inputs:
        folder = tmp_path / "here"
        folder.mkdir()
        monkeypatch.chdir(folder)
        assert target.outcome(data, folder) is None
        shutil.rmtree(folder)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc: run ci/install_system.sh")
@pytest.mark.parametrize("target", native.TARGETS)
def test_the_native_agents_targets_compile(target: str) -> None:
    agent = native.HERE.parents[1] / "runtimes" / "native"
    flags = ["-fsyntax-only", "-Wall", "-Wextra", "-Werror", '-DPHI_EDGE_VERSION="fuzz"', f"-I{agent}"]
    subprocess.run(["gcc", *flags, str(native.HERE / f"{target}.c")], check=True)


def test_a_traceback_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("phi_edge.verbs.artifact.check.open_artifact", crash)
    outcome = by_command(artifacts.with_manifest)
    assert "ZeroDivisionError" in (outcome(artifacts.sound_file(MANIFEST), tmp_path) or "")
