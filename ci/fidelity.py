"""Export every small variant in every format, compare it with its reference, and write the table in docs/fidelity.md.

    python ci/fidelity.py [--only phi-4-mini] [--from phi-3.5-mini] [--layers 32 | --write]

Two to three minutes a variant on two cores. With --write each variant's rows are written as soon as they are known, and
those of the others stay: continue an interrupted run with --from. Exit code 1 if a bound is missed.
tests/test_ci_fidelity.py runs a sample of it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before anything imports torch: under ExecuTorch's threads, OpenMP's own make a call a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

from ci.variants import LAYERS, VARIANTS, make_checkpoint
from export.artifact import Format
from export.pipeline import export_model
from export.request import ExportRequest
from export.target import TARGETS
from export.verify.conformance import examine
from export.verify.conformance_report import Report
from runtimes.subject import open_subject

PAGE = Path(__file__).parent.parent / "docs" / "fidelity.md"
BEGIN, END = "<!-- table: python ci/fidelity.py --write -->", "<!-- end of table -->"
EXPORTED = list(VARIANTS)


@dataclass(frozen=True)
class Kind:
    """One way to export a variant."""

    format: Format
    scheme: str
    target: str = "cpu"

    @property
    def name(self) -> str:
        return self.format if self.target == "cpu" else f"{self.format}, {self.target}"


# A float artifact in each format, each format's usual int4, and DirectML's form of the graph as it ships.
KINDS: Sequence[Kind] = (
    Kind("onnx", "fp32"),
    Kind("executorch", "fp32"),
    Kind("onnx", "int4-b64"),
    Kind("executorch", "int4-b32"),
    Kind("onnx", "int4-b32", "windows-directml"),
)
BEYOND_TOKENS = 256  # so far beyond the original length a context goes, where the model goes beyond it


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    variant: str
    kind: Kind
    report: Report

    def markdown(self) -> str:
        report = self.report
        lengths = ", ".join(str(length) for length in sorted({case.length for case in report.cases}))
        decodes = "; ".join(
            f"{decode.boundary}: " + ("the same" if decode.gap is None else f"from token {decode.first_difference} on, "
            f"gap {decode.gap:.3f}")
            for decode in report.decodes
        )  # fmt: skip
        verdict = "pass" if not report.failures else "**FAIL**"
        return (
            f"| {self.variant} | {self.kind.name} | {report.scheme} | {lengths} | {report.max_difference:.1e} | "
            f"{report.relative:.1e} | {report.mean_kl:.1e} | {report.share:.0%} | {report.top1_agreement:.0%} | "
            f"{decodes or 'none'} | {verdict} |"
        )


HEADER = (
    "| variant | format | scheme | lengths, each whole, in pieces and token by token "
    "| max \\|Δlogit\\| | in deviations | KL, nats | of the bounds | top-1 | greedy across | |\n" + "|---" * 11 + "|"
)


def context_for(variant: str, target: str = "cpu") -> int:
    """Beyond the original length where the model goes beyond it, else all of it; no more than the window where the
    target's attention cannot slide."""
    config = VARIANTS[variant]
    longest: int = config["max_position_embeddings"]
    original: int = config.get("original_max_position_embeddings") or longest
    window: int = longest if TARGETS[target].windows else config.get("sliding_window") or longest
    return min(longest, window, original + BEYOND_TOKENS)


def kinds_for(variant: str) -> list[Kind]:
    """DirectML's form is Phi-3's alone: it has no block-sparse attention."""
    return [kind for kind in KINDS if kind.target == "cpu" or VARIANTS[variant]["model_type"] == "phi3"]


def examine_variant(variant: str, folder: Path, kinds: Sequence[Kind], **changes: Any) -> Iterator[Row]:
    """Make the checkpoint, export it in each kind, and yield each row as it is known. `changes` of its config.json."""
    checkpoint = make_checkpoint(variant, folder / "checkpoint", **changes)
    for kind in kinds:
        request = ExportRequest(
            checkpoint=str(checkpoint),
            out=folder / f"{kind.target}-{kind.format}-{kind.scheme}",
            target=kind.target,
            format=kind.format,
            scheme=kind.scheme,
            context_tokens=context_for(variant, kind.target),
        )
        yield Row(variant, kind, examine(export_model(request), str(checkpoint), open_subject))


def write_rows(page: str, variant: str, rows: Sequence[str]) -> str:
    """The page with these rows for a variant, in the place of its old ones; the other variants' rows stay."""
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    kept = {name: [row for row in old.splitlines() if row.startswith(f"| {name} |")] for name in EXPORTED}
    kept[variant] = list(rows)
    table = "\n".join([HEADER, *(row for name in EXPORTED for row in kept[name])])
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=EXPORTED, action="append", help="this variant alone; may be given again")
    parser.add_argument("--from", dest="first", choices=EXPORTED, default=EXPORTED[0], help="begin with this variant")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of each checkpoint; to see what depth does")
    parser.add_argument("--write", action="store_true", help="write the rows into docs/fidelity.md")
    arguments = parser.parse_args()
    if arguments.write and arguments.layers != LAYERS:
        parser.error(f"--write: the page's table is of {LAYERS} layers; leave --layers out")
    failed = False
    for variant in arguments.only or EXPORTED[EXPORTED.index(arguments.first) :]:
        rows: list[str] = []
        with tempfile.TemporaryDirectory() as folder:
            for row in examine_variant(variant, Path(folder), kinds_for(variant), num_hidden_layers=arguments.layers):
                rows.append(row.markdown())
                print(rows[-1], flush=True)
                for failure in row.report.failures:
                    print(f"  missed: {failure}", flush=True)
                    failed = True
        if arguments.write:
            PAGE.write_text(write_rows(PAGE.read_text(encoding="utf-8"), variant, rows), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
