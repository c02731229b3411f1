"""`phi-edge gate`: budgets read strictly, verdicts, exit codes, JUnit; nothing passes unseen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

from devices.errors import BudgetError
from devices.judge.budgets import limits, read_budgets
from devices.judge.compare import decide
from devices.measure.intervals import bootstrap, interval
from devices.measure.measurement import Measurement, sha256_ids
from fakes.measurement import fake_measurement
from phi_edge.main import main

Golden = Callable[[str, str], None]
KEPT = """
[[budget]]
match = {target = "cpu", device = "local"}
max_ttft_s = 0.06
min_decode_tokens_per_s = 90
max_peak_memory_bytes = 200_000_000
"""
MISSED = """
[[budget]]
max_ttft_s = 0.04
max_itl_p95_s = 0.05
max_artifact_bytes = 1_000_000
"""


def gate(folder: Path, budgets: str, *measurements: Measurement, options: tuple[str, ...] = ()) -> Result:
    (folder / "budgets.toml").write_text(budgets)
    files = []
    for number, measurement in enumerate(measurements):
        (folder / f"{number}.json").write_text(measurement.to_json())
        files.append(str(folder / f"{number}.json"))
    words = ["gate", *files, "--budgets", str(folder / "budgets.toml"), "--junit", str(folder / "junit.xml"), *options]
    return CliRunner().invoke(main, words)


def nondeterministic() -> Measurement:
    measurement = fake_measurement()
    run = dataclasses.replace(measurement.repetitions[1].run, token_ids=[5] * 16, token_ids_sha256=sha256_ids([5] * 16))
    repetitions = list(measurement.repetitions)
    repetitions[1] = dataclasses.replace(repetitions[1], run=run)
    return dataclasses.replace(measurement, repetitions=repetitions)


def doubtful() -> Measurement:
    measurement = fake_measurement()
    return dataclasses.replace(measurement, before=dataclasses.replace(measurement.before, busy_share=1.0))


def test_a_doubt_is_said_and_passes(tmp_path: Path) -> None:
    result = gate(tmp_path, KEPT, doubtful())
    assert result.exit_code == 0, result.output
    assert "  doubtful  " in result.stdout
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()[0]
    assert (suite.findtext("system-out") or "").startswith("doubtful: ")
    assert (suite.get("tests"), suite.get("failures")) == ("3", "0")


def test_a_doubt_fails_where_the_budget_file_says_so(tmp_path: Path) -> None:
    result = gate(tmp_path, "fail_on_doubt = true" + KEPT, doubtful())
    assert result.exit_code == 1, result.output
    assert result.stdout.startswith("missed: ")
    failure = ElementTree.parse(tmp_path / "junit.xml").find("testsuite/testcase[@name='fail_on_doubt']/failure")
    assert failure is not None and failure.get("message", "").startswith("doubtful: ")
    assert gate(tmp_path, "fail_on_doubt = true" + KEPT, fake_measurement()).exit_code == 0
    assert gate(tmp_path, "fail_on_doubt = 1" + KEPT, fake_measurement()).exit_code == 2


def test_a_kept_budget_passes(tmp_path: Path, golden: Golden) -> None:
    result = gate(tmp_path, KEPT, fake_measurement())
    assert result.exit_code == 0, result.output
    golden("gate_pass.txt", result.stdout)


def test_a_missed_budget_exits_1(tmp_path: Path, golden: Golden) -> None:
    result = gate(tmp_path, MISSED, fake_measurement())
    assert result.exit_code == 1
    golden("gate_missed.txt", result.stdout)
    golden("gate_missed.xml", (tmp_path / "junit.xml").read_text())


def test_an_invalid_measurement_exits_1_whatever_its_numbers(tmp_path: Path, golden: Golden) -> None:
    result = gate(tmp_path, KEPT, nondeterministic())
    assert result.exit_code == 1
    golden("gate_invalid.txt", result.stdout)
    golden("gate_invalid.xml", (tmp_path / "junit.xml").read_text())


def test_what_was_not_measured_misses_its_budget(tmp_path: Path) -> None:
    result = gate(tmp_path, KEPT, fake_measurement(peak_bytes=None))
    assert result.exit_code == 1
    assert "missed   peak_memory_bytes        not measured" in result.stdout


def test_junit_counts_and_survives_any_name(tmp_path: Path) -> None:
    measurement = fake_measurement(name='<b>&"\x01\ud800'.encode("utf-8", "replace").decode())
    gate(tmp_path, KEPT + MISSED, measurement)
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("6", "2", "0")
    suite = root.find("testsuite")
    assert suite is not None and (suite.get("name") or "").startswith('<b>&"\ufffd')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[budget]]\nmax_tfft_s = 1", "unknown key 'max_tfft_s' (did you mean 'max_ttft_s'?); known: match, optional"),
        ("[[budget]]\nmatch = {targe = 'x'}\nmax_ttft_s = 1", "unknown key 'targe' (did you mean 'target'?)"),
        ("[[budgets]]", "unknown key 'budgets' (did you mean 'budget'?)"),
        ("[budget]\nmax_ttft_s = 1", "write each budget as a table [[budget]]"),
        ("[[budget]]\nmatch = {}", "has no limit; known: max_load_s"),
        ("[[budget]]\nmax_ttft_s = '1'", "expected a number that is not negative, saw '1'"),
        ("[[budget]]\nmax_ttft_s = nan", "expected a number that is not negative, saw nan"),
        ("[[budget]]\nmax_ttft_s = true", "expected a number that is not negative, saw True"),
        ("[[budget]]\noptional = 1\nmax_ttft_s = 1", "expected true or false, saw 1"),
        ("[[budget]]\nmatch = {prompt_tokens = '1'}\nmax_ttft_s = 1", "match.prompt_tokens: expected int, saw '1'"),
        ("noise_floor = 1.5", "noise_floor 1.5; give a share from 0 to below 1"),
        ("x", "is not TOML"),
    ],
)
def test_a_wrong_budget_file_is_the_users_fault(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "b.toml").write_text(text)
    with pytest.raises(BudgetError) as error:
        read_budgets(tmp_path / "b.toml")
    assert said in str(error.value)
    assert gate(tmp_path, text, fake_measurement()).exit_code == 2


def test_a_budget_that_matches_nothing_is_an_error_unless_optional(tmp_path: Path) -> None:
    other = "[[budget]]\nmatch = {target = 'android'}\nmax_ttft_s = 1\n"
    result = gate(tmp_path, KEPT + other, fake_measurement())
    assert result.exit_code == 2
    assert "budget 2 (target=android) matches none of the measurements given" in result.stderr
    assert gate(tmp_path, KEPT + other + "optional = true\n", fake_measurement()).exit_code == 0


def test_a_measurement_without_a_budget_is_an_error(tmp_path: Path) -> None:
    result = gate(tmp_path, KEPT, fake_measurement(), fake_measurement(name="other", target="android"))
    assert result.exit_code == 2
    assert "no budget matches other" in result.stderr


def test_every_metric_can_be_budgeted() -> None:
    assert {metric for metric, _ in limits().values()} >= {"ttft_s", "load_s", "itl_p95_s", "artifact_bytes"}
    assert "min_decode_tokens_per_s" in limits() and "max_decode_tokens_per_s" not in limits()


def compare(folder: Path, candidate: Measurement, baseline: Measurement, budgets: str = "noise_floor = 0.05") -> Result:
    (folder / "b.toml").write_text(budgets)
    (folder / "new.json").write_text(candidate.to_json())
    (folder / "old.json").write_text(baseline.to_json())
    return CliRunner().invoke(
        main,
        ["gate", str(folder / "new.json"), "--baseline", str(folder / "old.json"), "--junit", str(folder / "j.xml")],
    )


def test_a_slower_candidate_is_a_regression(tmp_path: Path, golden: Golden) -> None:
    result = compare(tmp_path, fake_measurement(gap_s=0.015), fake_measurement())
    assert result.exit_code == 1
    golden("gate_baseline.txt", result.stdout)
    golden("gate_baseline.xml", (tmp_path / "j.xml").read_text())


def test_a_faster_candidate_is_an_improvement(tmp_path: Path) -> None:
    result = compare(tmp_path, fake_measurement(gap_s=0.005), fake_measurement())
    assert result.exit_code == 0
    assert "improvement   decode_tokens_per_s" in result.stdout


def test_the_same_candidate_has_no_change(tmp_path: Path) -> None:
    result = compare(tmp_path, fake_measurement(repetitions=6), fake_measurement(repetitions=6))
    assert result.exit_code == 0
    assert "no-change     decode_tokens_per_s" in result.stdout


def test_few_repetitions_are_inconclusive_and_do_not_pretend(tmp_path: Path) -> None:
    result = compare(tmp_path, fake_measurement(repetitions=2, gap_s=0.02), fake_measurement(repetitions=2))
    assert result.exit_code == 0
    assert "inconclusive  decode_tokens_per_s" in result.stdout


def test_an_invalid_candidate_has_no_verdict(tmp_path: Path) -> None:
    result = compare(tmp_path, nondeterministic(), fake_measurement())
    assert result.exit_code == 1
    assert result.stdout.startswith("invalid: against the baseline")


def test_different_workloads_are_not_compared(tmp_path: Path) -> None:
    result = compare(tmp_path, fake_measurement(generate_tokens=8), fake_measurement())
    assert result.exit_code == 2
    assert "generate_tokens 8 against the baseline's 16" in result.stderr


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "higher_is_better"),
    [
        (1.06, 1.2, "regression", "improvement"),
        (0.8, 0.9, "improvement", "regression"),
        (0.97, 1.03, "no-change", "no-change"),
        (0.9, 1.2, "inconclusive", "inconclusive"),
        (1.02, 1.2, "inconclusive", "inconclusive"),
        (None, None, "inconclusive", "inconclusive"),
    ],
)
def test_the_verdict_on_an_interval(
    low: float | None, high: float | None, lower_is_better: str, higher_is_better: str
) -> None:
    assert decide(low, high, "lower", 0.05) == lower_is_better
    assert decide(low, high, "higher", 0.05) == higher_is_better


def test_false_alarms_are_rare_and_real_changes_are_found() -> None:
    rng = np.random.default_rng(3)

    def verdict(slower: float) -> str:
        new, old = (
            bootstrap([np.array([time_s]) for time_s in factor * np.exp(rng.normal(0, 0.02, 5))], 0.5, seed)
            for factor, seed in ((slower, 1), (1.0, 2))
        )
        return decide(*interval(new / old), "lower", 0.05)

    assert {verdict(1.0) for _ in range(60)} <= {"no-change", "inconclusive"}
    assert [verdict(1.2) for _ in range(60)].count("regression") >= 57


def test_without_anything_to_judge_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.json").write_text(fake_measurement().to_json())
    result = CliRunner().invoke(main, ["gate", "m.json"])
    assert result.exit_code == 2
    assert "give --budgets FILE or --baseline FILE" in result.stderr


def test_the_budgets_of_ci_can_be_read() -> None:
    assert read_budgets(Path(__file__).parent.parent / "ci" / "budgets.toml").budgets
