"""`phi-edge bench`: measure an artifact on a device."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from devices.errors import DeviceError
from phi_edge.files import FILE, FOLDER, check_writable, make_folder, write_text
from phi_edge.lab import DeviceName, Wait, lab_option, wait_option
from phi_edge.terminal import echo
from phi_edge.verb import Seconds, Verb
from runtimes.system.cores import MOST_THREADS
from runtimes.terminal import one_line

if TYPE_CHECKING:
    from devices.lab import Lab
    from devices.measure.contender import Contender
    from devices.measure.interleave import Rounds
    from devices.measure.measurement import Measurement
    from phi_edge.benching import Cell, Outcome

MOST_TIMES = 6  # --rounds, for --precision
TURNS_FLOOR = 0.01  # with --against: a change by less is nobody's concern


@click.command(
    "bench",
    cls=Verb,
    examples=[
        "phi-edge bench my-artifact --out here.json",
        "phi-edge bench my-artifact --device pi5 --prompt-tokens 512 --out pi5.json",
        "phi-edge bench new --against old --out new.json",
        "phi-edge bench my-artifact --device local --device claude --out-dir beside-claude",
        "phi-edge bench my-artifact genai-folder model.gguf --out-dir beside-others",
        "phi-edge bench a b --device pi5 --device phone --prompt-tokens 128 --prompt-tokens 512 --out-dir night",
    ],
    groups={
        "Where": ("names", "lab", "wait_s", "threads"),
        "Comparing": ("against", "rounds", "precision", "noise"),
        "What is measured": ("prompts", "generate_tokens", "reps", "warmup", "deadline_s", "ready_s"),
    },
)
@click.argument("artifacts", type=FOLDER, nargs=-1, metavar="[ARTIFACT...]")
@click.option("--device", "names", type=DeviceName(), multiple=True, default=("local",),
              help="A device of the lab file, or local. Give it again for each further device.")  # fmt: skip
@lab_option
@wait_option
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), metavar="N", help="Threads of the engine.",
              show_default="the device's threads in the lab file, else all cores that the process may use")  # fmt: skip
@click.option("--prompt-tokens", "prompts", type=click.IntRange(1), metavar="N", multiple=True, default=(128,),
              help="Length of the prompt. Give it again for each further length.")  # fmt: skip
@click.option("--generate-tokens", type=click.IntRange(1), metavar="N", default=64, help="Length of the answer.")
@click.option(
    "--reps",
    type=click.IntRange(1, 1000),
    metavar="N",
    show_default="5; with --against 1 in each session",
    help="Repetitions, each in a fresh process.",
)
@click.option("--warmup", type=click.IntRange(0, 1000), metavar="N", default=1,
              help="Requests before the measured one, in each process.")  # fmt: skip
@click.option("--deadline-s", type=Seconds(), metavar="SECONDS", default=600.0,
              help="The longest time for one repetition.")  # fmt: skip
@click.option("--ready-s", type=Wait(), metavar="SECONDS", show_default="neither waited for nor looked at",
              help="How long to wait before each repetition until the device is cool and idle.")  # fmt: skip
@click.option("--against", type=FOLDER, metavar="ARTIFACT", show_default="nothing",
              help="Measure in turns with this artifact, A B B A, and compare.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(2, 100), metavar="N", default=16,
              help="With --against: how often A B B A, each letter a session of --reps.")  # fmt: skip
@click.option("--precision", type=click.FloatRange(0.001, 0.5), metavar="SHARE", show_default="not looked at",
              help="With --against: go on, up to six times as many rounds, until the ratio of the median gap between "
              "tokens is known to this share, such as 0.02.")  # fmt: skip
@click.option("--noise", type=FILE, metavar="FILE", show_default="none",
              help="With --against: floors of what is noise. Against itself, it is written.")  # fmt: skip
@click.option("--out", type=FILE, metavar="FILE", show_default="a file in --out-dir",
              help="The measurement file to write, of one measurement.")  # fmt: skip
@click.option("--out-dir", type=FILE, metavar="FOLDER", show_default="only --out",
              help="A folder for the measurement files of any number; it is made.")  # fmt: skip
def bench_command(
    artifacts: tuple[Path, ...],
    names: tuple[str, ...],
    lab: Path | None,
    wait_s: float,
    prompts: tuple[int, ...],
    generate_tokens: int,
    reps: int | None,
    warmup: int,
    threads: int | None,
    deadline_s: float,
    ready_s: float | None,
    against: Path | None,
    rounds: int,
    precision: float | None,
    noise: Path | None,
    out: Path | None,
    out_dir: Path | None,
) -> None:
    """Measure every ARTIFACT on every device: load time, first token, speed, memory.

    ARTIFACT is a folder that `phi-edge export` wrote. On this machine it may also be what another tool exported, which
    its own engine runs: a folder of onnxruntime-genai, a .pte beside its tokenizer.json, a .gguf (docs/lab.md).

    The measurement file keeps the raw times of every token; show it with `phi-edge report`, judge it with `phi-edge
    gate`. With --out-dir many are measured, one after the other. Where a device does not answer, the others are
    measured all the same, and the exit code is 2. A device that is a service (docs/lab.md) is measured with its own
    model: leave ARTIFACT out.
    """
    from devices.drivers.cloud.device import CloudDevice
    from devices.drivers.table import open_lab
    from devices.measure.bench import Plan
    from devices.measure.contender import open_contender
    from devices.measure.readiness import Readiness
    from phi_edge.benching import Cell, bench_cells, cells_of, what_is_measured

    the_lab = open_lab(lab)
    devices = {name: the_lab.device(name) for name in names}
    services = sum(isinstance(device, CloudDevice) for device in devices.values())
    many = (len(set(artifacts) or {None}) * (len(devices) - services) + services) * len(set(prompts))
    if (out is None) == (out_dir is None) or (out is not None and many > 1):
        raise DeviceError(
            f"{many} measurement{'s' if many > 1 else ''}: give "
            + (
                "--out-dir FOLDER, in which each has a file"
                if many > 1
                else "either --out FILE or --out-dir FOLDER; an example: phi-edge bench my-artifact --out here.json"
            )
        )
    if against is not None and out is None:
        raise DeviceError("--against compares one artifact on one device: give --out FILE")
    for option, given in (("--noise", noise), ("--precision", precision)):
        if given is not None and against is None:
            raise DeviceError(f"{option} is for --against: give the artifact to compare with, too")
    plans = {
        name: Plan(
            generate_tokens=generate_tokens,
            repetitions=reps or (Plan.repetitions if against is None else 1),
            warmups=warmup,
            threads=threads if threads is not None else device.threads,
            deadline_s=deadline_s,
            readiness=Readiness(wait_s=ready_s, below_c=device.ready_below_c),
            meter=device.meter,
        )
        for name, device in devices.items()
    }
    pairs = what_is_measured([open_contender(artifact) for artifact in dict.fromkeys(artifacts)], devices)
    if out is not None:
        check_writable(out, artifacts)
        ((artifact, name),), (tokens,) = pairs, set(prompts)
        plan = dataclasses.replace(plans[name], prompt_tokens=tokens)
        cells = [Cell(artifact=artifact, device=name, plan=plan, out=out)]
        if against is not None:
            show_turns(cells[0], open_contender(against), the_lab, wait_s, planned_rounds(rounds, precision), noise)
            return
    else:
        assert out_dir is not None
        make_folder(out_dir)
        cells = cells_of(pairs, plans, list(dict.fromkeys(prompts)), out_dir)
    outcomes = bench_cells(cells, the_lab, wait_s, lambda what: echo(what, err=True))
    with contextlib.closing(outcomes):  # gives the device back, also where an outcome is an error
        show_outcomes(outcomes, len(cells))


def show_outcomes(outcomes: Iterator[Outcome], count: int) -> None:
    """The figures of each measurement as it comes, and of several a table at the end. Raises DeviceError where one is
    missing."""
    from devices.measure.result import Result
    from devices.report.figures import MAIN, figures_line, figures_table, main_figures

    rows, missing = [["artifact", "device", "prompt", *MAIN.values()]], []
    for outcome in outcomes:
        cell = outcome.cell
        row = [cell.name, cell.device, str(cell.plan.prompt_tokens)]
        if outcome.measurement is None:
            assert outcome.error is not None
            if count == 1:
                raise outcome.error
            missing.append(outcome)
            echo(f"not measured: {cell.title}: {one_line(str(outcome.error))}", err=True)
            rows.append([*row, *["-"] * len(MAIN)])
            continue
        result = Result(outcome.measurement, None)
        for problem in result.problems:
            echo(f"invalid: {one_line(problem)}", err=True)
        for doubt in result.doubts:
            echo(f"doubtful: {one_line(doubt)}", err=True)
        figures = main_figures(result)
        echo(f"{cell.title}: {figures_line(figures)}", err=True)
        echo(str(cell.out))
        rows.append([*row, *figures])
    if count > 1:
        echo(figures_table(rows), err=True)
    if missing:
        raise DeviceError(f"{len(missing)} of {count} were not measured; the lines above say why")


def planned_rounds(rounds: int, precision: float | None) -> Rounds:
    """The rounds to be made, and whether to go on until the comparison is precise."""
    from devices.judge.sessions import gap_precision
    from devices.measure.interleave import Rounds

    def enough(new: Measurement, old: Measurement) -> bool:
        found = gap_precision(new, old)
        return precision is None or found is None or found <= precision

    return Rounds(least=rounds, most=rounds if precision is None else MOST_TIMES * rounds, enough=enough)


def show_turns(cell: Cell, old: Contender, lab: Lab, wait_s: float, rounds: Rounds, noise: Path | None) -> None:
    """Measure in turns with `old`, and print what differs; of an artifact against itself, what is noise."""
    from devices.judge.compare import compare
    from devices.judge.noise import floors_of, read_floors, with_new
    from devices.judge.sessions import gap_precision
    from devices.judge.text import to_text
    from phi_edge.benching import bench_against, old_file

    for out in (old_file(cell.out), *([] if noise is None else [noise])):
        check_writable(out)
    floors = read_floors(noise) if noise is not None and noise.exists() else None
    new, baseline = bench_against(cell, old, lab, wait_s, rounds, lambda what: echo(one_line(what), err=True))
    if rounds.least < rounds.most:
        made = len({repetition.session for repetition in new.repetitions}) // 2
        found = gap_precision(new, baseline)
        reached = (
            f"the ratio of the gap is known to {found:.1%}"
            if found is not None
            else "no gap between tokens was measured"
        )
        advice = "" if rounds.enough(new, baseline) else "; for more, take a quieter device or more --rounds"
        echo(f"{made} rounds: {reached}{advice}", err=True)
    itself = new.artifact.digest == baseline.artifact.digest
    known = floors.of(cell.device) if floors is not None and not itself else {}
    echo(to_text([], compare(new, baseline, 0.0 if itself else TURNS_FLOOR, known)), nl=False)
    if noise is not None and itself:
        write_text(noise, with_new(floors, floors_of(new, baseline)).to_json())
    for out in (cell.out, old_file(cell.out)):
        echo(str(out), err=True)
