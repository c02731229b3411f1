"""The Python agent beyond the protocol (test_runtimes_protocol.py): its options, and where it can be started."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.agent import fake_agent
from fakes.talk import Talk
from runtimes.engines.fake import fake_artifact

ROOT = Path(__file__).parents[1]
SLOW_S = 0.02
LONG: dict[str, Any] = {"ids": [1], "max_new_tokens": 500}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fake_artifact(tmp_path_factory.mktemp("agent") / "artifact").folder)


@pytest.fixture
def start(folder: str) -> Iterator[Callable[..., Talk]]:
    talks: list[Talk] = []

    def begin(*options: str) -> Talk:
        talks.append(Talk([*fake_agent(SLOW_S), folder, *options]))
        assert talks[-1].next()["event"] == "ready"
        return talks[-1]

    yield begin
    for talk in talks:
        talk.kill()


def test_a_cancel_in_the_middle_ends_the_answer(start: Callable[..., Talk]) -> None:
    talk = start()
    talk.send("generate", 1, **LONG)
    assert [talk.next()["event"] for _ in range(3)] == ["token"] * 3
    talk.send("cancel", 1)
    *_, done = talk.answer(1)
    assert done["finish"] == "cancelled" and done["usage"]["completion"] < 500
    talk.send("generate", 2, ids=[1], max_new_tokens=4)
    assert len(talk.answer(2)) == 5


def test_a_deadline_ends_the_answer(start: Callable[..., Talk]) -> None:
    talk = start()
    talk.send("generate", 1, **LONG, deadline_s=0.2)
    *tokens, done = talk.answer(1)
    assert done["finish"] == "deadline" and 1 <= len(tokens) < 500


def test_ctrl_c_ends_it_while_it_waits(tiny_onnx_short: Path) -> None:
    """Not with SIGABRT, as Python does where a thread waits for stdin."""
    talk = Talk([sys.executable, "-P", "-m", "runtimes.agent", str(tiny_onnx_short)])
    assert talk.next()["event"] == "ready"
    talk.process.send_signal(signal.SIGINT)
    assert talk.process.wait(60) == 130
    talk.kill()


def test_the_lock_may_be_in_a_folder_that_is_not_there_yet(start: Callable[..., Talk], tmp_path: Path) -> None:
    lock = tmp_path / "new folder" / "lock"
    talk = start("--lock", str(lock))
    assert json.loads(lock.read_text())["pid"] == talk.process.pid


def sample(*options: str, **more: Any) -> dict[str, Any]:
    command = [sys.executable, *options, "-m", "runtimes.agent", "--sample"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True, stdin=subprocess.DEVNULL, **more)
    line = json.loads(done.stdout)
    assert line["event"] == "sample" and line["conditions"]["memory_total_bytes"] > 0
    return dict(line)


def test_a_sample_needs_no_artifact() -> None:
    assert sample()["conditions"]["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_files_named_like_ours_in_the_current_folder_do_no_harm(tmp_path: Path) -> None:
    """Started with -P, as the drivers do; our code comes by PYTHONPATH, as on a board."""
    for name in ("export.py", "runtimes.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong file was imported')\n")
    (tmp_path / "devices").mkdir()
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    sample("-P", cwd=tmp_path, env=environment)
