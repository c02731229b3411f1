"""`phi-edge gate`: are measurements good enough?"""

from __future__ import annotations

from pathlib import Path

import click

from devices.errors import BudgetError
from phi_edge.errors import Failed
from phi_edge.files import FILE, check_writable, write_text
from phi_edge.terminal import echo
from phi_edge.verb import Verb


@click.command(
    "gate",
    cls=Verb,
    examples=[
        "phi-edge gate phone.json phone.score.json --budgets budgets.toml --junit phone.xml",
        "phi-edge gate new.json --baseline old.json",
    ],
)
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--budgets", "budgets_file", type=FILE, metavar="FILE", help="The limits.",
              show_default="budgets.toml in this folder, if there is one")  # fmt: skip
@click.option("--baseline", "baseline_file", type=FILE, metavar="FILE", show_default="no comparison",
              help="An earlier measurement to compare with; for one FILES only.")  # fmt: skip
@click.option("--noise", type=FILE, metavar="FILE", show_default="the budgets' noise_floor alone",
              help="Noise floors of `phi-edge bench A --against A --noise FILE`; for --baseline.")  # fmt: skip
@click.option("--junit", type=FILE, metavar="FILE", show_default="no file", help="Also write the outcome as JUnit XML.")
def gate_command(
    files: tuple[Path, ...],
    budgets_file: Path | None,
    baseline_file: Path | None,
    noise: Path | None,
    junit: Path | None,
) -> None:
    """Judge FILES by limits, for CI.

    FILES are what `phi-edge bench` and `phi-edge score` wrote; a score belongs to the measurements of its artifact.
    Exit code 0: every limit is met. Exit code 1: a limit is missed, a measurement is invalid, or it is slower than its
    baseline beyond doubt.
    """
    from devices.judge.budgets import Budgets, read_budgets
    from devices.judge.compare import compare
    from devices.judge.gate import judge
    from devices.judge.junit import to_junit
    from devices.judge.noise import read_floors
    from devices.judge.text import to_text
    from devices.measure.measurement import read_measurement
    from devices.measure.result import read_results
    from devices.report.table import labels

    default_budgets = Path("budgets.toml")
    chosen = budgets_file or (default_budgets if default_budgets.is_file() else None)
    if chosen is None and baseline_file is None:
        raise BudgetError("nothing to judge by: give --budgets FILE or --baseline FILE (or write budgets.toml here)")
    if baseline_file is not None and len(files) != 1:
        raise BudgetError(f"--baseline compares one measurement, {len(files)} were given; judge them one at a time")
    if noise is not None and baseline_file is None:
        raise BudgetError("--noise says what a difference from --baseline is worth; give --baseline FILE, too")
    if junit is not None:
        check_writable(junit)
    results = read_results(files)
    budgets = read_budgets(chosen) if chosen else Budgets(budgets=())
    named = dict(zip(labels(results), results, strict=True))
    judgements = judge(named, budgets.budgets, fail_on_doubt=budgets.fail_on_doubt) if chosen else []
    comparison = None
    if baseline_file is not None:
        candidate, baseline = read_measurement(files[0]), read_measurement(baseline_file)
        floors = read_floors(noise).of(candidate.device.name) if noise is not None else {}
        comparison = compare(candidate, baseline, budgets.noise_floor, floors)
    if junit is not None:
        write_text(junit, to_junit(judgements, comparison))
    echo(to_text(judgements, comparison), nl=False)
    kept = all(judgement.outcome == "pass" for judgement in judgements)
    if not kept or (comparison is not None and comparison.verdict in ("regression", "invalid")):
        raise Failed("")
