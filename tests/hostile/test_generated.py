"""Generated hostile input: no traceback, no hang, no crash, no silent acceptance, nothing left behind.

One kind, or one input of it, by hand: `pytest tests/hostile -k manifest`, and HOSTILE=manifest:17 for number 17 alone.
HOSTILE_TIMES=10 tries ten times as many of each kind. docs/robustness.md lists the kinds.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from hostile.cheap import little_memory, make_cheap
from hostile.devices import answers_to, request_lines
from hostile.kinds import BY_HAND, KINDS, REQUEST_LINES, REQUESTS, total
from hostile.trial import Trial, fault, seeded, time_limit
from hostile.words import requests
from phi_edge.main import main
from runtimes import open_runtime
from runtimes.engines.fake import fake_artifact, fake_opener
from runtimes.errors import RuntimesError

ONLY = os.environ.get("HOSTILE", "")
TIMES = int(os.environ.get("HOSTILE_TIMES", "1"))
PAGE = Path(__file__).parents[2] / "docs" / "robustness.md"
HAND = "## What is tried by hand"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cheap enough for thousands of inputs."""
    make_cheap(monkeypatch.setattr)
    with little_memory():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: fresh, and made fresh again by `trials`."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def trials(name: str) -> Iterator[tuple[int, Trial]]:
    """The inputs of a kind. Each has a source of chance of its own, so that number 17 is always the same."""
    if ONLY and ONLY.partition(":")[0] != name:
        return
    for number in [int(ONLY.partition(":")[2])] if ":" in ONLY else range(TIMES * KINDS[name].count):
        yield number, KINDS[name].trial(seeded(name, number))


@pytest.mark.parametrize("name", KINDS)
def test_the_sound_input_is_accepted(name: str, folder: Path) -> None:
    result = CliRunner().invoke(main, list(KINDS[name].sound(folder)))
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("name", KINDS)
def test_every_broken_input_ends_well(name: str, folder: Path) -> None:
    threads = threading.active_count()
    faults = []
    for number, trial in trials(name):
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if (found := fault(trial, folder)) is not None:
            faults.append(f"HOSTILE={name}:{number}  {trial.what}\n    {found[:600]}")
    assert not faults, f"{len(faults)} of {TIMES * KINDS[name].count}:\n" + "\n".join(faults)
    assert threading.active_count() <= threads + 1  # an agent's reader may be about to end


def test_a_python_agent_survives_every_line(tmp_path: Path) -> None:
    lines = request_lines(seeded("requests", 0), REQUEST_LINES)
    answers = answers_to(lines, tmp_path)
    assert len(answers) == len(lines)
    for line, answer in zip(lines, answers, strict=True):
        assert answer["event"] == "error" and not answer["fatal"], (line[:200], answer)
        assert answer["code"] in ("malformed", "request", "unsupported"), (line[:200], answer)


def test_a_python_caller_gets_our_errors_alone(tmp_path: Path) -> None:
    runtime = open_runtime(fake_artifact(tmp_path / "a"), engine=fake_opener("Well."))
    faults = []
    for what, request in itertools.islice(requests(seeded("requests", 1)), REQUESTS):
        try:
            with time_limit(30):
                list(runtime.generate(request))
        except RuntimesError:
            continue
        except Exception as error:
            faults.append(f"{what}: {type(error).__name__}: {error}")
    assert not faults, "\n".join(faults)


def rows(text: str) -> dict[str, int]:
    """First cell -> the number in the last one, of a table's rows."""
    found = re.findall(r"^\| ([^|]+) \|.*\| ([0-9,]+) \|$", text, re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in found}


def test_the_page_counts_what_is_tried() -> None:
    counts = {f"`{name}`": kind.count for name, kind in KINDS.items()}
    counts |= {"lines": REQUEST_LINES, "requests": REQUESTS, "all": total()}
    assert rows(PAGE.read_text(encoding="utf-8").partition(HAND)[0]) == counts
    assert total() >= 2_000


def test_the_page_counts_what_is_tried_by_hand() -> None:
    """At least so many, and not far more: a case more needs no other number."""
    files = [f"tests/{file}" for files in BY_HAND.values() for file in files]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PAGE.parents[1], timeout=200, check=True)
    found = {name: int(count) for name, count in re.findall(r"^tests/(\S+): (\d+)$", done.stdout, re.MULTILINE)}
    counts = {kind: sum(found[file] for file in files) for kind, files in BY_HAND.items()}
    counts["all"] = sum(counts.values())
    told = rows(PAGE.read_text(encoding="utf-8").partition(HAND)[2].partition("\n## ")[0])
    assert told.keys() == counts.keys()
    assert {kind: count for kind, count in counts.items() if not told[kind] <= count <= 1.2 * told[kind] + 5} == {}
