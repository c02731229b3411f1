"""`bench --against`: two artifacts in turns, and verdicts whose unit is the session."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ci.bench.verdicts import APART, DEVICES, METHODS, SESSIONS_OF_FIVE, rates, rates_of_one
from devices.judge.compare import compare
from devices.judge.noise import floors_of, read_floors
from devices.judge.sessions import Session, gap_precision, ratio_of, sessions_of
from devices.measure.measurement import Measurement, read_measurement
from devices.measure.metrics import METRICS
from devices.measure.validity import problems
from fakes.agent import fake_agent
from fakes.measurement import fake_measurement
from phi_edge.main import main
from runtimes.engines.fake import fake_artifact


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Two artifacts and a device."""
    fake_artifact(tmp_path / "new")
    fake_artifact(tmp_path / "old", context_tokens=256)
    (tmp_path / "lab.toml").write_text(f"[device.desk]\nagent = {json.dumps(fake_agent(0.002))}\n")
    return tmp_path


def bench(desk: Path, *words: str) -> Result:
    small = ["--prompt-tokens", "9", "--generate-tokens", "4", "--reps", "1", "--warmup", "0"]
    where = ["--device", "desk", "--lab", str(desk / "lab.toml"), "--out", str(desk / "m.json")]
    return CliRunner().invoke(main, ["bench", str(desk / "new"), *small, *where, *words])


def test_two_artifacts_take_turns_and_are_compared(desk: Path) -> None:
    result = bench(desk, "--against", str(desk / "old"), "--rounds", "2")
    assert result.exit_code == 0, result.output
    new, old = read_measurement(desk / "m.json"), read_measurement(desk / "m.against.json")
    assert (new.artifact.name, old.artifact.name) == ("new", "old")
    assert new.pair == old.pair is not None
    for measurement in (new, old):
        assert problems(measurement) == []
        assert [repetition.session for repetition in measurement.repetitions] == [0, 1, 2, 3]
    assert "ttft_s" in result.stdout and "x (" in result.stdout
    judged = CliRunner().invoke(main, ["gate", str(desk / "m.json"), "--baseline", str(desk / "m.against.json")])
    assert judged.exit_code in (0, 1) and "against the baseline, noise floor 5%" in judged.stdout


@pytest.mark.parametrize(
    ("precision", "rounds", "said"),
    [
        ("0.5", 4, "4 rounds: the ratio of the gap is known to "),
        ("0.001", 8, "; for more, take a quieter device or more --rounds"),
    ],
)
def test_more_rounds_until_the_ratio_is_known(
    desk: Path, monkeypatch: pytest.MonkeyPatch, precision: str, rounds: int, said: str
) -> None:
    """Twice --rounds at most. The machine's own noise does not decide here: as if the ratio were known to a tenth."""
    monkeypatch.setattr("phi_edge.verbs.bench.MOST_TIMES", 2)
    monkeypatch.setattr("devices.judge.sessions.gap_precision", lambda new, old: 0.1)
    result = bench(desk, "--against", str(desk / "old"), "--rounds", "4", "--precision", precision)
    assert result.exit_code == 0 and said in result.stderr, result.output
    new, old = read_measurement(desk / "m.json"), read_measurement(desk / "m.against.json")
    for measurement in (new, old):
        assert {repetition.session for repetition in measurement.repetitions} == set(range(2 * rounds))
        assert measurement.workload.repetitions == 2 * rounds and problems(measurement) == []
    known = gap_precision(new, old)  # the real one
    assert known is not None and known > 0


def test_where_there_is_no_gap_no_more_rounds_are_made(desk: Path) -> None:
    result = bench(
        desk, "--against", str(desk / "old"), "--rounds", "4", "--precision", "0.5", "--generate-tokens", "1"
    )
    assert result.exit_code == 0 and "4 rounds: no gap between tokens was measured\n" in result.stderr, result.output


def test_what_was_looked_at_is_kept_when_the_device_goes_away(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After five rounds, an agent that does not start."""
    monkeypatch.setattr("devices.measure.interleave.LOOK_ROUNDS", 1)
    agent = desk / "agent.sh"
    command = shlex.join(fake_agent(0.002))
    agent.write_text(f'echo x >> {desk}/starts; [ "$(wc -l < {desk}/starts)" -le 21 ] || exit 1; exec {command} "$@"\n')
    (desk / "lab.toml").write_text(f"[device.desk]\nagent = {json.dumps(['sh', str(agent)])}\n")
    result = bench(desk, "--against", str(desk / "old"), "--rounds", "4", "--precision", "0.001")
    assert result.exit_code == 0 and "the comparison ends at 5 rounds: " in result.stderr, result.output
    assert len(read_measurement(desk / "m.json").repetitions) == 10


def test_an_artifact_against_itself_gives_the_floor_that_later_verdicts_use(desk: Path) -> None:
    noise = desk / "noise.json"
    for _ in range(2):  # the second run replaces the floors of the first
        result = bench(desk, "--against", str(desk / "new"), "--rounds", "2", "--noise", str(noise))
        assert result.exit_code == 0, result.output
    floors = read_floors(noise)
    names = [floor.metric for floor in floors.floors]
    assert "ttft_s" in names and "artifact_bytes" not in names and len(names) == len(set(names))
    assert {(floor.device, floor.sessions) for floor in floors.floors if floor.metric == "ttft_s"} == {("desk", 4)}
    content = json.loads(noise.read_text())
    for floor in content["floors"]:
        floor["share"] = 50.0
    noise.write_text(json.dumps(content))
    judged = bench(desk, "--against", str(desk / "old"), "--rounds", "2", "--noise", str(noise))
    assert "no-change     ttft_s" in judged.stdout and "noise floor 5000.0%" in judged.stdout
    files = [str(desk / "m.json"), "--baseline", str(desk / "m.against.json")]
    gated = CliRunner().invoke(main, ["gate", *files, "--noise", str(noise)])
    assert gated.exit_code == 0 and "noise floor 5000.0%" in gated.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--noise", "n.json"], "--noise is for --against"),
        (["--precision", "0.02"], "--precision is for --against"),
        (["--against", "nothing"], "nothing"),
        (["--against", "old", "--generate-tokens", "300"], "more than the artifact's context of 256"),
        (["--against", "old", "--noise", "m.toml"], "m.toml: is not JSON"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    desk: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(desk)
    (desk / "m.toml").write_text("[floors]")
    result = bench(desk, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert not (desk / "m.json").exists()


def with_sessions(gaps_s: Sequence[float], pair: str | None = "one") -> Measurement:
    """A measurement of sessions with three repetitions each, whose gaps are around these."""
    sessions = [fake_measurement(repetitions=3, gap_s=gap_s) for gap_s in gaps_s]
    repetitions = [
        dataclasses.replace(repetition, session=number)
        for number, measurement in enumerate(sessions)
        for repetition in measurement.repetitions
    ]
    workload = dataclasses.replace(sessions[0].workload, repetitions=len(repetitions))
    return dataclasses.replace(sessions[0], repetitions=repetitions, workload=workload, pair=pair)


DRIFT = (0.010, 0.011, 0.012, 0.013, 0.014, 0.015)


@pytest.mark.parametrize(
    ("slower", "pair", "verdict"),
    [(1.06, "one", "regression"), (1.0, "one", "no-change"), (1.06, None, "inconclusive")],
)
def test_what_drifts_hits_both_of_a_pair(slower: float, pair: str | None, verdict: str) -> None:
    """Sessions differ by 50 %, and the two of a pair by 6 %: seen in turns, and not otherwise."""
    new, old = with_sessions([gap * slower for gap in DRIFT], pair), with_sessions(DRIFT, pair)
    changes = {change.metric: change for change in compare(new, old, 0.01).changes}
    assert changes["itl_p50_s"].verdict == verdict
    assert changes["itl_p50_s"].ratio == pytest.approx(slower)


def test_many_repetitions_of_two_sessions_prove_nothing_about_sessions() -> None:
    metric = METRICS["itl_p50_s"]
    two = sessions_of(metric, with_sessions(DRIFT[:2]))
    assert ratio_of(two, two, 0.5, paired=True) is None
    three: dict[int, Session] = {0: [np.array([1.0])], 1: [np.array([2.0, 3.0])], 5: [np.array([4.0]), np.array([5.0])]}
    assert ratio_of(three, three, 0.5, paired=True) is not None
    assert ratio_of(three, {number: [np.array([0.0])] for number in three}, 0.5, paired=True) is None
    assert ratio_of(three, {0: three[0], 1: three[1], 2: three[5]}, 0.5, paired=True) is None  # two pairs


def test_a_few_sessions_in_which_the_machine_did_something_else_change_no_verdict() -> None:
    """By means they would: 32 pairs that differ by 5 %, and in two of them the machine was three times slower."""
    random = np.random.default_rng(0)
    old = {number: [np.array([time])] for number, time in enumerate(np.exp(random.normal(0, 0.02, 32)))}
    new = {number: [time * 1.05 for time in session] for number, session in old.items()}
    for number in (3, 11):
        old[number] = [time * 3 for time in old[number]]
    ratio = ratio_of(new, old, 0.5, paired=True)
    assert ratio is not None and ratio.value == pytest.approx(1.05, abs=0.001) and ratio.low > 1.04


def test_a_floor_is_the_far_end_of_the_interval() -> None:
    floors = {floor.metric: floor.share for floor in floors_of(with_sessions(DRIFT), with_sessions(DRIFT))}
    assert floors["itl_p50_s"] == pytest.approx(0.0)
    noisy = floors_of(with_sessions([0.010, 0.012, 0.010, 0.012]), with_sessions([0.012, 0.010, 0.012, 0.010]))
    assert {floor.metric: floor.share for floor in noisy}["itl_p50_s"] > 0.1


def test_a_newer_file_of_floors_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text('{"schema": 9, "floors": []}')
    (tmp_path / "m.json").write_text(fake_measurement().to_json())
    words = [
        "gate",
        str(tmp_path / "m.json"),
        "--baseline",
        str(tmp_path / "m.json"),
        "--noise",
        str(tmp_path / "n.json"),
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and "n.json: schema 9; this version reads noise floors of schema 1" in result.stderr


def test_the_simulator_s_verdicts() -> None:
    """A small run of what docs/lab.md publishes: ours calls few changes that are none, where the others call many."""
    sessions = rates(DEVICES["sessions differ by 4 %"], 0.0, SESSIONS_OF_FIVE, 60, seed=1)
    assert sessions["sessions (ours)"] <= 0.1 < sessions["Welch's t"]
    assert tuple(sessions) == METHODS
    same = rates_of_one(DEVICES["sessions differ by 4 %"], 0.0, 200, seed=1)
    assert max(same.plain, same.precise) <= 0.05 and same.rounds > 16
    outliers = rates_of_one(DEVICES["outliers"], 0.05, 200, seed=2)
    assert min(outliers.plain, outliers.precise) >= 0.95
    slower = rates_of_one(DEVICES["all of it"], 0.05, 200, seed=2)
    assert slower.plain < 0.95 <= slower.precise
    assert rates(DEVICES["calm"], 0.05, SESSIONS_OF_FIVE, 40, seed=2)["sessions (ours)"] >= 0.9
    assert rates(DEVICES["drift of 10 %"], 0.0, SESSIONS_OF_FIVE, 40, seed=3)["sessions (ours)"] <= 0.05
    assert rates(DEVICES["drift of 10 %"], 0.0, APART, 10, seed=3)["Mann-Whitney"] == 1.0
