"""`phi-edge bench`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from phi_edge.files import FILE, check_writable


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
    from devices.drivers.table import find_device, open_driver
    from devices.measure.bench import Plan, measure
    from devices.measure.measurement import DeviceFacts, write_measurement
    from devices.measure.validity import doubts, problems
    from export.artifact import open_artifact
    from phi_edge.progress import steps

    device = find_device(name, lab)
    opened = open_artifact(artifact)
    check_writable(out)
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
