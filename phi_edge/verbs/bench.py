"""`phi-edge bench`: measure an artifact on a device."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from phi_edge.files import FILE, FOLDER, check_writable, write_text
from phi_edge.lab import DeviceName, lab_option
from phi_edge.terminal import echo
from phi_edge.verb import Seconds, Verb
from runtimes.system.cores import MOST_THREADS
from runtimes.terminal import one_line


@click.command(
    "bench",
    cls=Verb,
    examples=[
        "phi-edge bench my-artifact --out here.json",
        "phi-edge bench my-artifact --device pi5 --prompt-tokens 512 --out pi5.json",
    ],
    groups={
        "Where": ("name", "lab", "threads"),
        "What is measured": ("prompt_tokens", "generate_tokens", "reps", "warmup", "deadline_s"),
    },
)
@click.argument("artifact", type=FOLDER)
@click.option("--device", "name", type=DeviceName(), default="local", help="A device of the lab file, or local.")
@lab_option
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), metavar="N", help="Threads of the engine.",
              show_default="the device's threads in the lab file, else all cores that the process may use")  # fmt: skip
@click.option("--prompt-tokens", type=click.IntRange(1), metavar="N", default=128, help="Length of the prompt.")
@click.option("--generate-tokens", type=click.IntRange(1), metavar="N", default=64, help="Length of the answer.")
@click.option(
    "--reps", type=click.IntRange(1, 1000), metavar="N", default=5, help="Repetitions, each in a fresh process."
)
@click.option("--warmup", type=click.IntRange(0, 1000), metavar="N", default=1,
              help="Requests before the measured one, in each process.")  # fmt: skip
@click.option("--deadline-s", type=Seconds(), metavar="SECONDS", default=600.0,
              help="The longest time for one repetition.")  # fmt: skip
@click.option("--out", type=FILE, metavar="FILE", required=True, help="The measurement file to write.")
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
    """Measure ARTIFACT on a device: load time, first token, speed, memory.

    ARTIFACT is a folder that `phi-edge export` wrote. The measurement file keeps the raw times of every token; show it
    with `phi-edge report`, judge it with `phi-edge gate`.
    """
    from devices.drivers.table import find_device, open_driver
    from devices.measure.bench import Plan, measure
    from devices.measure.measurement import DeviceFacts
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
    write_text(out, measurement.to_json())
    for problem in problems(measurement):
        echo(f"invalid: {one_line(problem)}", err=True)
    for doubt in doubts(measurement):
        echo(f"doubtful: {one_line(doubt)}", err=True)
    echo(str(out))
