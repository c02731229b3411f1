"""`phi-edge score`: how much of the float model an artifact has kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from devices.errors import DeviceError
from export.request import ADAPTER, AdapterChoice, parse_adapter
from phi_edge.files import FILE, FOLDER, check_writable, write_text
from phi_edge.lab import DeviceName, lab_option, wait_option
from phi_edge.terminal import echo
from phi_edge.verb import Parsed, Verb
from runtimes.system.cores import MOST_THREADS

if TYPE_CHECKING:
    from devices.measure.score import Figure, Score


@click.command(
    "score",
    cls=Verb,
    examples=[
        "phi-edge score my-artifact --against microsoft/Phi-3-mini-4k-instruct",
        "phi-edge score my-artifact --against other-artifact --tokens 4000 --json my-artifact.score.json",
    ],
    groups={
        "What is read and asked": ("against", "adapters", "text", "tokens", "questions"),
        "Where": ("device", "lab", "wait_s", "threads"),
    },
    extra="export",
)
@click.argument("artifact", type=FOLDER, required=False)
@click.option("--against", metavar="MODEL", show_default="no KL and no top-1 agreement",
              help="The float checkpoint, or another artifact, to compare with.")  # fmt: skip
@click.option("--adapter", "adapters", type=Parsed("adapter", parse_adapter), multiple=True, metavar=ADAPTER,
              show_default="none",
              help="With a checkpoint: an adapter merged into the artifact; repeat it for several.")  # fmt: skip
@click.option("--text", type=FILE, metavar="FILE", show_default="the held-out text of this package",
              help="A text in UTF-8 to predict, or documents as JSON lines (.jsonl).")  # fmt: skip
@click.option("--tokens", type=click.IntRange(0), metavar="N", default=16_384,
              help="Tokens to predict, evenly from the whole text; 0: only the questions.")  # fmt: skip
@click.option("--questions", type=FILE, metavar="FILE", show_default="the questions of this package",
              help="Questions and their answers as JSON lines.")  # fmt: skip
@click.option("--device", type=DeviceName(), metavar="NAME", show_default="this process",
              help="A device of the lab file.")  # fmt: skip
@lab_option
@wait_option
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), metavar="N", help="Threads of the engine.",
              show_default="the device's threads in the lab file, else all cores that the process may use")  # fmt: skip
@click.option("--json", "out", type=FILE, metavar="FILE", show_default="no file",
              help="Write the score for `phi-edge report` and `gate`; - prints it.")  # fmt: skip
def score_command(
    artifact: Path | None,
    against: str | None,
    adapters: tuple[AdapterChoice, ...],
    text: Path | None,
    tokens: int,
    questions: Path | None,
    device: str | None,
    lab: Path | None,
    wait_s: float,
    threads: int | None,
    out: Path | None,
) -> None:
    """Measure how much of the float model ARTIFACT has kept.

    Perplexity on a text, KL and top-1 agreement with MODEL on the same text, and exact match on questions, each with a
    95 % interval. The artifact runs in its own engine, with the engine's 8-bit activations. docs/score.md says what
    each figure means. A device that is a service (docs/lab.md) is only asked the questions: leave ARTIFACT out.
    """
    from devices.drivers.cloud.device import CloudDevice
    from devices.drivers.table import find_device
    from export.artifact import open_artifact
    from phi_edge.score.inputs import read_inputs
    from phi_edge.score.scoring import make_score, score_service

    if out is not None:
        check_writable(out, [artifact, against, text, questions, lab])
    row = None if device is None else find_device(device, lab)
    if device is not None and isinstance(row, CloudDevice):
        if artifact is not None or against is not None or adapters or text is not None or threads is not None:
            raise DeviceError(
                f"device {device} is a service, which gives no probabilities and runs its own model: leave ARTIFACT, "
                "--against, --adapter, --text and --threads out"
            )
        show(score_service(device, row, questions), out, None)
        return
    if artifact is None:
        raise DeviceError(
            "ARTIFACT is missing; an example: phi-edge score my-artifact --against microsoft/Phi-3-mini-4k-instruct"
        )
    if not tokens and (against is not None or text is not None):
        raise DeviceError("--tokens 0 asks only the questions: leave --against and --text out, or read some tokens")
    if adapters and against is None:
        raise DeviceError("--adapter is for --against: give --against CHECKPOINT too, or leave --adapter out")
    opened = open_artifact(artifact)
    inputs = read_inputs(opened, text, questions, tokens)
    score = make_score(
        opened, inputs, against, adapters=adapters, device=device, lab=lab, wait_s=wait_s, threads=threads
    )
    show(score, out, inputs.no_questions)


def show(score: Score, out: Path | None, no_questions: str | None) -> None:
    """Print the figures, unless the file is stdout, and write the file, if one is wanted: last, as it may fail."""
    if str(out) != "-":
        echo(to_text(score, no_questions))
    if out is not None:
        write_text(out, score.to_json())


def to_text(score: Score, no_questions: str | None) -> str:
    """One line a figure. `no_questions` says why none were asked."""
    facts, reference = score.artifact, score.reference
    if facts.service is not None or facts.artifact_bytes is None:
        lines = [f"{facts.name}: a service at {facts.source}"]
    else:
        lines = [
            f"{facts.name}: {facts.format}, {facts.scheme}, {facts.artifact_bytes / 1e6:.1f} MB, on {score.device.name}"
        ]
    if score.perplexity is not None and score.text is not None:
        said = f"{score.text.scored_tokens:,} tokens of {score.text.name} in {score.text.blocks} blocks"
        if score.text.left_out:
            said += f"; {score.text.left_out} of its conversations left out, which the chat template refuses"
        lines.append(_line("perplexity", score.perplexity, "{:.2f}", said))
    if reference is not None and score.perplexity_ratio and score.kl and score.top1_agreement:
        assert score.reference_perplexity is not None
        said = f"of that of {reference.name}, which is {score.reference_perplexity.value:.2f}"
        lines.append(_line("its ratio", score.perplexity_ratio, "{:.3f}", said))
        lines.append(_line("KL", score.kl, "{:.4f}", f"nats a token, over {_over(reference.kl_over)}"))
        lines.append(_line("top-1 agreement", score.top1_agreement, "{:.1%}", ""))
    if score.exact_match is not None and score.questions is not None:
        counts = score.questions.kinds.values()
        right, asked = sum(count.right for count in counts), sum(count.asked for count in counts)
        lines.append(_line("exact match", score.exact_match, "{:.1%}", f"{right} of {asked} in {score.questions.name}"))
    elif no_questions is not None:
        lines.append(f"  exact match      not measured: {no_questions}")
    return "\n".join(lines)


def _over(kl_over: str) -> str:
    return "the vocabulary" if kl_over == "vocabulary" else f"its {kl_over}"


def _line(name: str, figure: Figure, shape: str, said: str) -> str:
    value = shape.format(figure.value)
    if figure.low is None or figure.high is None:
        interval = "(no interval: too few blocks)"
    else:
        interval = f"({shape.format(figure.low)} to {shape.format(figure.high)})"
    return f"  {name:<15}  {value:>8}  {interval:<20}  {said}".rstrip()
