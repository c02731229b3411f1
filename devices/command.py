"""`phi-edge bench`, `report` and `gate`: options in, exit codes out. All work is done by the files beside it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from devices.errors import BudgetError, DeviceError

FILE = click.Path(path_type=Path)


@click.command("bench")
@click.argument("artifact", type=FILE)
@click.option("--device", "name", default="local", show_default=True, help="A device of lab.toml, or this machine.")
@click.option("--lab", type=FILE, default=None, help="The lab file; lab.toml of this folder where there is one.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--generate-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--reps", type=click.IntRange(1), default=5, show_default=True, help="Each is a fresh process.")
@click.option(
    "--warmup", type=click.IntRange(0), default=1, show_default=True, help="Requests before the measured one."
)
@click.option("--threads", type=click.IntRange(1), default=None, help="All cores it may use unless given.")
@click.option("--deadline-s", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True,
              help="For each repetition.")  # fmt: skip
@click.option("--out", type=FILE, required=True, help="The measurement's file.")
def bench_command(
    artifact: Path,
    name: str,
    lab: Path | None,
    prompt_tokens: int,
    generate_tokens: int,
    reps: int,
    warmup: int,
    threads: int | None,
    deadline_s: float,
    out: Path,
) -> None:
    """Measure an ARTIFACT: load, time to first token, prefill, decode, every token's latency, peak memory."""
    from devices.bench import Plan, measure
    from devices.drivers import find_device, open_driver
    from devices.measurement import DeviceFacts, write_measurement
    from devices.progress import steps
    from devices.validity import doubts, problems
    from export.artifact import open_artifact

    device = find_device(name, lab)
    opened = open_artifact(artifact)
    _check_writable(out)
    plan = Plan(
        prompt_tokens=prompt_tokens,
        generate_tokens=generate_tokens,
        repetitions=reps,
        warmups=warmup,
        threads=threads if threads is not None else device.threads,
        deadline_s=deadline_s,
    )
    facts = DeviceFacts(name=name, transport=device.transport)
    with (
        contextlib.closing(open_driver(name, device)) as driver,
        steps(f"bench {opened.folder.resolve().name}", plan.requests) as step,
    ):
        measurement = measure(opened, facts, driver, plan, step)
    write_measurement(out, measurement)
    for problem in problems(measurement):
        click.echo(f"invalid: {problem}", err=True)
    for doubt in doubts(measurement):
        click.echo(f"doubtful: {doubt}", err=True)
    click.echo(str(out))


@click.command("report")
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--html", "html_out", type=FILE, default=None, help="Write one self-contained page with plots.")
@click.option("--markdown", is_flag=True, help="Print a table for GitHub (also when nothing else is asked for).")
@click.option("--json", "json_out", type=FILE, default=None, help="Write the same numbers for a script; - prints them.")
def report_command(files: tuple[Path, ...], html_out: Path | None, markdown: bool, json_out: Path | None) -> None:
    """Show measurement FILES side by side. Ratios are to the first."""
    from devices.measurement import read_measurement
    from devices.report import make_columns, to_json, to_markdown

    columns = make_columns([read_measurement(file) for file in files])
    if html_out is not None:
        _check_writable(html_out)
        try:
            from devices.page import to_html
        except ModuleNotFoundError as missing:
            if missing.name != "matplotlib":
                raise
            raise DeviceError(
                "--html needs matplotlib, which is not installed: pip install 'phi-edge[report]'"
            ) from None
        _write(html_out, to_html(columns))
    if json_out is not None:
        _write(json_out, to_json(columns))
    if markdown or (html_out is None and json_out is None):
        click.echo(to_markdown(columns), nl=False)


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
    from devices.budgets import Budgets, read_budgets
    from devices.compare import compare
    from devices.gate import judge
    from devices.judgement_text import to_text
    from devices.junit import to_junit
    from devices.measurement import read_measurement
    from devices.report import labels

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
        _write(junit, to_junit(judgements, comparison))
    click.echo(to_text(judgements, comparison), nl=False)
    kept = all(judgement.outcome == "pass" for judgement in judgements)
    if not kept or (comparison is not None and comparison.verdict in ("regression", "invalid")):
        raise SystemExit(1)


def _check_writable(out: Path) -> None:
    """Say now, not after minutes of work, that the file cannot be written."""
    if not out.parent.is_dir():
        raise DeviceError(f"{out}: its folder does not exist; make it first")
    if out.is_dir():
        raise DeviceError(f"{out}: is a folder; give a file")


def _write(out: Path, text: str) -> None:
    if str(out) == "-":
        click.echo(text, nl=False)
        return
    _check_writable(out)
    part = out.with_name(f".{out.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(out)
