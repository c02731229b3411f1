"""Export a model and judge what comes of it, with one exit code: what a CI job calls (docs/ci.md).

    python ci/check_export.py check.toml --out-dir result --baselines baselines

It exports, checks that the artifact computes what the checkpoint computes, and judges its size, memory plan and
coverage, its quality, and its speed on this machine or a device of the lab file, against limits and a stored baseline.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, python puts ci/ there

from ci.export_check.baselines import baseline_path, compare_with, keep
from ci.export_check.check_file import CheckFile, CheckFileError, read_check_file, read_limits
from ci.export_check.commands import Commands
from ci.export_check.finding import Finding, exit_code
from ci.export_check.judging import judge_plan, judge_results
from ci.export_check.shown import junit, summary, workflow_commands
from devices.errors import DeviceError
from devices.judge.budgets import Budgets
from devices.measure.result import Result, read_results
from devices.report.table import labels
from export.artifact import open_artifact
from phi_edge.errors import Failed
from phi_edge.files import FILE, FOLDER, make_folder, write_text
from phi_edge.main import BUG
from phi_edge.terminal import echo
from phi_edge.verb import Verb
from runtimes.terminal import one_line

SCORE, MEASUREMENT = "score.json", "measurement.json"


@click.command(
    cls=Verb,
    examples=["python ci/check_export.py check.toml --out-dir result --baselines baselines"],
    extra="export,onnx",
)
@click.argument("file", type=FILE, metavar="CHECK_FILE")
@click.option("--out-dir", type=FOLDER, metavar="FOLDER", required=True,
              help="A new or empty folder for artifact, score, measurement, summary.md and junit.xml.")  # fmt: skip
@click.option("--artifact", type=FOLDER, metavar="FOLDER", show_default="exported by CHECK_FILE",
              help="An artifact that was exported before.")  # fmt: skip
@click.option("--baselines", type=FOLDER, metavar="FOLDER", show_default="no comparison",
              help="The folder in which baselines are kept. The first run that passes leaves one.")  # fmt: skip
@click.option("--new-baseline", is_flag=True, help="Compare with no baseline: this run becomes it, if it passes.")
@click.option("--github", is_flag=True, help="Also print annotations and folds for GitHub Actions.")
def main(
    file: Path, out_dir: Path, artifact: Path | None, baselines: Path | None, new_baseline: bool, github: bool
) -> None:
    """Export a model as CHECK_FILE says, and judge it.

    Exit code 0: every limit is met. Exit code 1: a limit is missed, or it is slower than its baseline beyond doubt.
    Exit code 2: something could not be judged. docs/ci.md shows a check file.
    """
    check = read_check_file(file)
    budgets = read_limits(check, file.parent)
    if artifact is None and check.checkpoint is None:
        raise CheckFileError(f"{file}: has no checkpoint; add checkpoint = '...', or give --artifact FOLDER")
    make_folder(out_dir)
    if any(out_dir.iterdir()):
        raise CheckFileError(
            f"{out_dir}: is not empty; give a new folder, so that no old result is taken for a new one"
        )
    out = out_dir.resolve()
    commands = Commands(folder=file.resolve().parent, logs=out, github=github, say=lambda line: click.echo(line))
    findings = run_commands(check, artifact.resolve() if artifact else None, out / "artifact" / file.stem, commands)
    results = read_results([out / name for name in (SCORE, MEASUREMENT) if (out / name).is_file()])
    if results and not any(finding.outcome == "error" for finding in findings):
        findings += judge_all(results, budgets, None if new_baseline else baselines, file.stem)
    if baselines is not None and exit_code(findings) == 0:
        findings += keep_first(results, baselines, file.stem, replace=new_baseline)
    write_text(out / "summary.md", summary(file.stem, findings, results))
    write_text(out / "junit.xml", junit(file.stem, findings))
    show(findings, workflow_commands(file.stem, findings) if github else [])
    finish(findings)


def run_commands(check: CheckFile, given: Path | None, new: Path, commands: Commands) -> list[Finding]:
    """Export to `new` where no artifact is given; check, score and bench; and what the manifest says."""
    artifact, out = given or new, commands.logs
    findings = []
    if given is None:
        make_folder(new.parent)
        findings.append(commands.run("export", [str(check.checkpoint), str(artifact), *check.export, "--quiet"]))
        if findings[-1].outcome != "pass":
            return findings
    findings.append(commands.run("check", [str(artifact), *check.check]))
    if findings[-1].outcome == "error":
        return findings
    findings += judge_plan(open_artifact(artifact).manifest, check.limits)
    if check.score is not None:
        findings.append(commands.run("score", [str(artifact), *check.score, "--json", str(out / SCORE)]))
    if check.bench is not None:
        findings.append(commands.run("bench", [str(artifact), *check.bench, "--out", str(out / MEASUREMENT)]))
    return findings


def judge_all(results: list[Result], budgets: Budgets | None, baselines: Path | None, name: str) -> list[Finding]:
    """By the budget file, and by the baseline. What the two files do not allow to judge is a finding, too."""
    findings: list[Finding] = []
    try:
        findings += judge_results(dict(zip(labels(results), results, strict=True)), budgets)
        for measurement in (result.measurement for result in results):
            if measurement is not None and baselines is not None:
                noise_floor = (budgets or Budgets(budgets=())).noise_floor
                findings += compare_with(baseline_path(baselines, name, measurement), measurement, noise_floor)
    except DeviceError as error:
        findings.append(Finding(step="limits", name="files", outcome="error", said=one_line(str(error))))
    return findings


def keep_first(results: list[Result], baselines: Path, name: str, *, replace: bool) -> list[Finding]:
    """A run that passed becomes the baseline where there is none, or where it may replace it."""
    findings = []
    for measurement in (result.measurement for result in results):
        if measurement is not None:
            path = baseline_path(baselines, name, measurement)
            if replace or not path.exists():
                keep(measurement, path)
                findings.append(Finding(step="baseline", name="kept", outcome="note", said=f"this run, as {path.name}"))
    return findings


def show(findings: list[Finding], commands: list[str]) -> None:
    """A line for each finding, then the commands for GitHub."""
    for finding in findings:
        echo(f"{finding.outcome:<6}  {finding.step:<8}  {finding.name:<24}  {one_line(finding.said)}")
    for line in commands:
        echo(line)


def finish(findings: list[Finding]) -> None:
    """The verdict. Raises Failed or CheckFileError."""
    if (code := exit_code(findings)) == 0:
        echo("pass")
        return
    failed = [each for each in findings if each.outcome == ("missed" if code == 1 else "error")]
    said = "; ".join(f"{each.step}: {each.name}: {one_line(each.said)}" for each in failed)
    if code == 1:
        raise Failed(f"missed: {said}")
    raise CheckFileError(f"not judged: {said}")


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.exit(BUG)
