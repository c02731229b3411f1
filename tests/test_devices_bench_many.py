"""`phi-edge bench` with several artifacts, devices and prompts: a file for each, and none is lost for another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from devices.measure.measurement import read_measurement
from fakes.agent import fake_agent
from phi_edge.main import main
from runtimes.engines.fake import fake_artifact

AWAY = json.dumps([sys.executable, "-c", "import sys; sys.exit('the cable is out')"])


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """A folder with two artifacts, a device that works and one that does not."""
    for name in ("a", "b"):
        fake_artifact(tmp_path / name)
    agent = json.dumps(fake_agent())
    (tmp_path / "lab.toml").write_text(f"[device.away]\nagent = {AWAY}\n[device.desk]\nagent = {agent}\n")
    return tmp_path


def bench(night: Path, *words: str) -> Result:
    small = ["--generate-tokens", "5", "--reps", "1", "--warmup", "0", "--lab", str(night / "lab.toml")]
    return CliRunner().invoke(main, ["bench", str(night / "a"), *words, *small])


def test_every_artifact_with_every_prompt(night: Path) -> None:
    words = [str(night / "b"), "--device", "desk", "--prompt-tokens", "9", "--prompt-tokens", "17"]
    result = bench(night, *words, "--out-dir", str(night / "out" / "new"))
    assert result.exit_code == 0, result.output
    files = [night / "out" / "new" / f"{name}-desk-{tokens}.json" for name in "ab" for tokens in (9, 17)]
    assert result.stdout.splitlines() == [str(file) for file in files]
    found = [(m.artifact.name, m.workload.prompt_tokens) for m in map(read_measurement, files)]
    assert found == [("a", 9), ("a", 17), ("b", 9), ("b", 17)]
    assert "a on desk, prompt 9: first token" in result.stderr
    header, *rows = result.stderr.splitlines()[-5:]
    assert header.split() == ["artifact", "device", "prompt", "first", "token", "prefill", "decode", "peak", "memory"]
    assert [row.split()[:3] for row in rows] == [["a", "desk", n] for n in ("9", "17")] + [
        ["b", "desk", n] for n in ("9", "17")
    ]


def test_a_device_that_is_away_stops_no_other(night: Path) -> None:
    words = [str(night / "b"), "--device", "away", "--device", "desk", "--prompt-tokens", "9"]
    result = bench(night, *words, "--out-dir", str(night / "out"))
    assert result.exit_code == 2
    assert sorted(path.name for path in (night / "out").iterdir()) == ["a-desk.json", "b-desk.json"]
    assert "not measured: a on away, prompt 9: " in result.stderr
    assert "the cable is out" in result.stderr
    assert "2 of 4 were not measured" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["b", "--device", "desk", "--out", "m.json"], "2 measurements: give --out-dir FOLDER"),
        (["--device", "desk"], "1 measurement: give either --out FILE or --out-dir FOLDER"),
        (["--device", "desk", "--device", "nobody", "--out-dir", "out"], "nobody"),
        (["sub/a", "--device", "desk", "--out-dir", "out"], "two measurements would have this file"),
        (["--device", "desk", "--out-dir", "lab.toml"], "cannot be made a folder"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any(
    night: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(night)
    (night / "sub").mkdir()
    fake_artifact(night / "sub" / "a")
    before = sorted(night.rglob("*.json"))
    result = bench(night, *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert sorted(night.rglob("*.json")) == before
