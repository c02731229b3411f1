"""`phi-edge demo`: the whole pipeline on the embedded tiny model, through the commands that a reader would type."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from devices.errors import DeviceError
from export.target import TARGETS
from phi_edge.errors import Failed, UserError
from phi_edge.files import FOLDER
from phi_edge.terminal import echo
from phi_edge.verb import Verb

MARK = ".made-by-phi-edge-demo"
ENGINES = {"cpu": "ONNX Runtime", "android": "ExecuTorch"}  # the targets that this machine runs, one of each format
QUESTIONS = ("Turn off the lamp in the kitchen.", "How many grams are 7 kilograms?")
STEP_DEADLINE_S = 300.0


@dataclass(frozen=True)
class Step:
    """One command of the demo, as a reader would type it after `phi-edge`."""

    title: str
    words: Sequence[str]

    @property
    def command_line(self) -> str:
        return shlex.join(["phi-edge", *self.words])


@click.command(
    "demo",
    cls=Verb,
    examples=["phi-edge demo", "phi-edge demo --out /tmp/phi-edge-demo"],
    extra="export,onnx,report",
)
@click.option("--out", type=FOLDER, metavar="FOLDER", default=Path("demo"),
              help="Where the results go: a new or empty folder, or one that an earlier demo made.")  # fmt: skip
def demo_command(out: Path) -> None:
    """Show the whole pipeline on a tiny model that ships with the package.

    It exports the model for every target, asks it questions in both engines, measures both and writes a report: about a
    minute on two cores.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    begun = time.monotonic()
    make_room(out)
    steps = plan(out)
    for number, step in enumerate(steps, start=1):
        console.rule(f"[bold]{number}/{len(steps)}[/bold]  {step.title}", align="left", style="dim")
        console.print(f"$ {step.command_line}", style="cyan", markup=False, soft_wrap=True)
        _run(step, f"step {number} of {len(steps)}")
    console.rule(f"[bold]done[/bold] in {time.monotonic() - begun:.0f} s", align="left", style="dim")
    echo(f"artifacts     {' '.join(str(out / target) for target in TARGETS)}")
    echo(f"measurements  {' '.join(str(out / f'{target}.json') for target in ENGINES)}")
    echo(f"report        {out / 'report.html'}")


def plan(out: Path) -> list[Step]:
    """The steps, in order."""
    steps = [
        Step(f"Export the tiny model for {target}", ["export", "tiny", str(out / target), "--target", target])
        for target in TARGETS
    ]
    steps += [Step(f"Check every byte of {target}", ["check", str(out / target)]) for target in TARGETS]
    steps += [
        Step(f"Ask it, on {engine}", ["run", str(out / target), question, "--max-new-tokens", "48"])
        for target, engine in ENGINES.items()
        for question in QUESTIONS
    ]
    tokens = ["--prompt-tokens", "64", "--generate-tokens", "32"]
    steps += [
        Step(f"Measure it on {engine}", ["bench", str(out / target), *tokens, "--out", str(out / f"{target}.json")])
        for target, engine in ENGINES.items()
    ]
    files = [str(out / f"{target}.json") for target in ENGINES]
    steps.append(Step("Report", ["report", *files, "--html", str(out / "report.html"), "--markdown"]))
    return steps


def make_room(out: Path) -> None:
    """An empty folder with our mark in it. Of a folder with the mark, only what a demo makes is removed."""
    if out.exists() and not out.is_dir():
        raise DeviceError(f"{out}: is not a folder; give another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise DeviceError(f"{out}: is not empty and was not made by a demo; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    for folder in (out / target for target in TARGETS):
        if folder.is_symlink():
            raise DeviceError(f"{folder}: is a link, which a demo does not make; remove it or give another --out")
        if folder.is_dir():
            shutil.rmtree(folder)
    for name in [*(f"{target}.json" for target in ENGINES), "report.html"]:
        (out / name).unlink(missing_ok=True)


def _run(step: Step, where: str) -> None:
    """Run one command with our stdout and stderr, so that its own progress and answers are seen as they come."""
    try:
        code = subprocess.run([sys.executable, "-P", "-m", "phi_edge", *step.words], timeout=STEP_DEADLINE_S).returncode
    except subprocess.TimeoutExpired:
        raise Failed(f"{where} took longer than {STEP_DEADLINE_S:.0f} s: {step.command_line}") from None
    if code != 0:
        raise (Failed if code == 1 else UserError)(f"{where} failed with exit code {code}: {step.command_line}")
