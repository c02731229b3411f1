"""`phi-edge check`: is an artifact whole, and does it compute what its checkpoint computes?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from export.artifact import open_artifact, verify
from export.errors import OptionError
from phi_edge.export import summary

if TYPE_CHECKING:
    from export.verify.conformance import Report


@click.command("check")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--against", help="The checkpoint it was exported from: compare logits and greedy tokens at every boundary."
)
@click.option("--json", "out", type=click.Path(path_type=Path), help="With --against: write the report to this file.")
def check_command(artifact: Path, against: str | None, out: Path | None) -> None:
    """Verify ARTIFACT: whole, unchanged since its export, and every path inside its folder.

    With --against it is run beside the float model, at the lengths where others break: around the sliding window and
    the original context length, prefilled whole, in pieces and token by token. Exit code 1 where a bound is missed.
    """
    if out is not None and against is None:
        raise OptionError("--json is the report of --against; give the checkpoint too")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise OptionError(f"--json {out}: cannot be written; give a file in a folder that is there")
    opened = open_artifact(artifact)
    verify(opened)
    click.echo(summary(opened))
    if against is None:
        return
    from export.verify.conformance import examine
    from runtimes.subject import open_subject

    report = examine(opened, against, open_subject)
    if out is not None:
        out.write_text(report.to_json(), encoding="utf-8")
    click.echo(table(report))
    if report.failures:
        click.echo("\n".join(f"missed: {failure}" for failure in report.failures), err=True)
        raise SystemExit(1)


def table(report: Report) -> str:
    """A line for each case and each decode, then the sum of them."""
    lines = [
        f"against {report.checkpoint} ({report.reference})",
        f"  {'length':>7}  {'prefilled':<10}  {'max |Δ|':>8}  KL",
    ]
    for case in report.cases:
        top1 = "" if case.same_top1 else "  another top token"
        lines.append(f"  {case.length:>7}  {case.way:<10}  {case.max_difference:8.1e}  {case.kl:.1e}{top1}")
    for decode in report.decodes:
        said = (
            f"token {decode.first_difference} differs (gap {decode.gap:.1e})" if decode.gap is not None else "the same"
        )
        lines.append(f"  greedy from {decode.start} across {decode.boundary}: {decode.tokens} tokens, {said}")
    lines.append(
        f"  max |Δ| {report.max_difference:.1e} ({report.relative:.1e} deviations, at most "
        f"{report.bounds.max_difference:g}), KL {report.mean_kl:.1e}, top-1 {report.top1_agreement:.0%}: bounds "
        + ("missed" if report.failures else "kept")
    )
    return "\n".join(lines)
