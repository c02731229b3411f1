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
        "phi-edge gate tonight --baseline last-night",
    ],
)
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--budgets", "budgets_file", type=FILE, metavar="FILE", help="The limits.",
              show_default="budgets.toml in this folder, if there is one")  # fmt: skip
@click.option("--baseline", "baseline_file", type=FILE, metavar="FILE", show_default="no comparison",
              help="An earlier measurement to compare one with, or a folder of them for many.")  # fmt: skip
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

    FILES are what `phi-edge bench` and `phi-edge score` wrote, or folders of them; a score belongs to the measurements
    of its artifact. With a folder as the baseline each measurement is compared with that of the same artifact's name,
    device and workload, and what nobody measured now is a failure.
    Exit code 0: every limit is met. Exit code 1: a limit is missed, a measurement is invalid, or it is slower than its
    baseline beyond doubt.
    """
    from devices.judge.budgets import Budgets, read_budgets
    from devices.judge.compare import Comparison, compare
    from devices.judge.gate import judge
    from devices.judge.junit import to_junit
    from devices.judge.matched import Matched, files_of, match, read_measurements, unmeasured_of
    from devices.judge.noise import read_floors
    from devices.judge.text import to_text
    from devices.measure.measurement import read_measurement
    from devices.measure.result import read_results
    from devices.report.table import labels

    default_budgets = Path("budgets.toml")
    chosen = budgets_file or (default_budgets if default_budgets.is_file() else None)
    if chosen is None and baseline_file is None:
        raise BudgetError("nothing to judge by: give --budgets FILE or --baseline FILE (or write budgets.toml here)")
    folders = baseline_file is not None and baseline_file.is_dir()
    if baseline_file is not None and not folders and (len(files) != 1 or files[0].is_dir()):
        raise BudgetError(
            "--baseline FILE compares one measurement; give one, or a folder as the baseline, for which each "
            "measurement's own is found"
        )
    if noise is not None and baseline_file is None:
        raise BudgetError("--noise says what a difference from --baseline is worth; give --baseline FILE, too")
    if junit is not None:
        check_writable(junit, [*files, chosen, baseline_file, noise])
    paths, unmeasured = files_of(files), unmeasured_of(files)
    results = read_results(paths)
    budgets = read_budgets(chosen) if chosen else Budgets(budgets=())
    named = dict(zip(labels(results), results, strict=True))
    judgements = judge(named, budgets.budgets, fail_on_doubt=budgets.fail_on_doubt) if chosen else []
    comparison: Comparison | Matched | None = None
    if baseline_file is not None:
        floors = read_floors(noise) if noise is not None else None
        if folders:
            old = read_measurements(files_of([baseline_file]))
            comparison = match(read_measurements(paths), old, budgets.noise_floor, floors, unmeasured)
        else:
            candidate, baseline = read_measurement(paths[0]), read_measurement(baseline_file)
            own = floors.of(candidate.device.name) if floors is not None else {}
            comparison = compare(candidate, baseline, budgets.noise_floor, own)
    elif unmeasured:
        comparison = Matched(comparisons={}, missing=[f"{label}: {why}" for label, why in unmeasured.items()])
    if junit is not None:
        write_text(junit, to_junit(judgements, comparison))
    echo(to_text(judgements, comparison), nl=False)
    kept = all(judgement.outcome == "pass" for judgement in judgements)
    if not kept or (comparison is not None and not comparison.is_good):
        raise Failed("")
