"""`phi-edge check`: is an artifact whole, and does it compute what its checkpoint computes?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from export.artifact import open_artifact, refuse_incomplete, verify
from export.errors import OptionError
from export.inspect.names import is_foreign
from export.request import ADAPTER, AdapterChoice, parse_adapter
from phi_edge.errors import Failed
from phi_edge.files import FILE, FOLDER, check_writable, write_text
from phi_edge.terminal import echo
from phi_edge.verb import Parsed, Verb
from phi_edge.verbs.export import summary
from runtimes.terminal import one_line

if TYPE_CHECKING:
    from export.verify.conformance_report import Report


@click.command(
    "check",
    cls=Verb,
    examples=[
        "phi-edge check my-artifact",
        "phi-edge check my-artifact --against microsoft/Phi-3-mini-4k-instruct --json report.json",
        "phi-edge check genai-folder --against microsoft/Phi-3-mini-4k-instruct",
    ],
    extra="export",
)
@click.argument("artifact", type=FOLDER)
@click.option("--against", metavar="CHECKPOINT", show_default="only the files are verified",
              help="The checkpoint it was exported from: also compare logits and greedy tokens with it.")  # fmt: skip
@click.option("--adapter", "adapters", type=Parsed("adapter", parse_adapter), multiple=True, metavar=ADAPTER,
              show_default="none",
              help="With --against: an adapter that was merged into it; repeat it for several.")  # fmt: skip
@click.option("--json", "out", type=FILE, metavar="FILE", show_default="no file",
              help="Write the report to this file; of an artifact of ours only with --against.")  # fmt: skip
def check_command(artifact: Path, against: str | None, adapters: tuple[AdapterChoice, ...], out: Path | None) -> None:
    """Verify that ARTIFACT is whole and unchanged since its export.

    Every file is compared with the size and SHA-256 in its manifest. With --against, the artifact also runs beside the
    float model, at the lengths where implementations often fail: around the sliding window and the original context
    length, with the prompt whole, in pieces and token by token. Exit code 1 if a bound is missed.

    ARTIFACT may also be what another tool exported: a folder of onnxruntime-genai, Olive or optimum, or a .pte. Then
    what is known to be wrong with it is listed, without running it; of --against only config.json is read, by which it
    is judged. Exit code 1 if something is wrong.
    """
    if is_foreign(artifact):
        if adapters:
            raise OptionError("--adapter is for an artifact of phi-edge: leave it out")
        if out is not None:
            check_writable(out, [artifact, against])
        check_foreign(artifact, against, out)
        return
    if adapters and against is None:
        raise OptionError("--adapter is for --against: give --against CHECKPOINT too, or leave --adapter out")
    if out is not None and against is None:
        raise OptionError("--json writes the report of --against: give --against CHECKPOINT too, or leave --json out")
    if out is not None:
        check_writable(out, [artifact, against])
    opened = open_artifact(artifact)
    refuse_incomplete(opened)
    verify(opened)
    for name in opened.strangers():
        echo(f"stranger: {one_line(name)} is not in the manifest: nothing reads it; remove it", err=True)
    echo(summary(opened))
    if against is None:
        return
    from export.verify.conformance import examine
    from runtimes.subject import open_subject

    report = examine(opened, against, open_subject, adapters=adapters)
    if out is not None:
        write_text(out, report.to_json())
    echo(table(report))
    if report.failures:
        echo("\n".join(f"missed: {failure}" for failure in report.failures), err=True)
        raise Failed("")


def check_foreign(path: Path, against: str | None, out: Path | None) -> None:
    """Print what is known to be wrong with another tool's export. Raises Failed if anything is."""
    from export.checkpoint.find import find_checkpoint
    from export.inspect.findings import examine_foreign
    from export.inspect.foreign import CONFIG, open_foreign

    checkpoint = None if against is None else find_checkpoint(against, [CONFIG]).folder
    model = open_foreign(path, checkpoint)
    findings = examine_foreign(model)
    if out is not None:
        write_text(out, json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2) + "\n")
    wrong = sum(finding.state == "wrong" for finding in findings)
    echo(f"{one_line(str(model.model))}: {model.maker}, without a manifest: whether its bytes changed cannot be known")
    if not model.config:
        echo("no config.json: give --against CHECKPOINT to judge window and rope")
    for finding in findings:
        echo(one_line(finding.line()))
    echo(f"{wrong} known to be wrong, {len(findings) - wrong} that the files do not show")
    if wrong:
        raise Failed("")


def table(report: Report) -> str:
    """A line for each case and each greedy decode, then a line for all."""
    bounds = report.bounds
    lines = [
        f"against {report.checkpoint} ({report.reference})",
        f"  {'length':>7}  {'prefilled':<10}  {'max |Δ|':>8}  {'deviations':>10}  {'at most':>8}  KL",
    ]
    for case in report.cases:
        top1 = "" if case.same_top1 else "  another top token"
        lines.append(
            f"  {case.length:>7}  {case.way:<10}  {case.max_difference:8.1e}  {case.relative:10.1e}  "
            f"{bounds.at(case.length):8.1e}  {case.kl:.1e}{top1}"
        )
    for decode in report.decodes:
        outcome = (
            f"token {decode.first_difference} differs (gap {decode.gap:.1e})" if decode.gap is not None else "the same"
        )
        lines.append(f"  greedy from {decode.start} across {decode.boundary}: {decode.tokens} tokens, {outcome}")
    lines.append(
        f"  max |Δ| {report.max_difference:.1e}, KL {report.mean_kl:.1e} (at most {bounds.mean_kl:.1e}), top-1 "
        f"{report.top1_agreement:.0%}: bounds " + ("missed" if report.failures else "kept")
    )
    if report.failures or bounds.by_length:
        lines.append(f"  bounds: {bounds.reason}")
    return "\n".join(lines)
