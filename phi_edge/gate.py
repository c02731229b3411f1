"""`phi-edge gate`."""

from __future__ import annotations

from pathlib import Path

import click

from devices.errors import BudgetError
from phi_edge.files import FILE, write_text


@click.command("gate")
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--budgets", "budgets_file", type=FILE, default=None,
              help="The budgets; budgets.toml of this folder where there is one.")  # fmt: skip
@click.option(
    "--baseline", "baseline_file", type=FILE, default=None, help="An earlier measurement to compare one FILE with."
)
@click.option("--junit", type=FILE, default=None, help="Write the outcome as JUnit XML too.")
def gate_command(
    files: tuple[Path, ...], budgets_file: Path | None, baseline_file: Path | None, junit: Path | None
) -> None:
    """Judge measurement FILES by budgets. Exit 0: all kept; 1: a budget missed, a regression, or invalid."""
    from devices.judge.budgets import Budgets, read_budgets
    from devices.judge.compare import compare
    from devices.judge.gate import judge
    from devices.judge.junit import to_junit
    from devices.judge.text import to_text
    from devices.measure.measurement import read_measurement
    from devices.report.table import labels

    default_budgets = Path("budgets.toml")
    chosen = budgets_file or (default_budgets if default_budgets.is_file() else None)
    if chosen is None and baseline_file is None:
        raise BudgetError("nothing to judge by: give --budgets FILE or --baseline FILE (or write budgets.toml here)")
    if baseline_file is not None and len(files) != 1:
        raise BudgetError(f"--baseline compares with one measurement, and {len(files)} were given")
    measurements = [read_measurement(file) for file in files]
    budgets = read_budgets(chosen) if chosen else Budgets(budgets=())
    judgements = judge(dict(zip(labels(measurements), measurements, strict=True)), budgets.budgets) if chosen else []
    comparison = (
        compare(measurements[0], read_measurement(baseline_file), budgets.noise_floor) if baseline_file else None
    )
    if junit is not None:
        write_text(junit, to_junit(judgements, comparison))
    click.echo(to_text(judgements, comparison), nl=False)
    kept = all(judgement.outcome == "pass" for judgement in judgements)
    if not kept or (comparison is not None and comparison.verdict in ("regression", "invalid")):
        raise SystemExit(1)
