"""A measurement's main figures in one line, and several measurements as rows of a table for a terminal."""

from __future__ import annotations

from collections.abc import Container, Sequence

from devices.measure.metrics import METRICS
from devices.measure.result import Result
from devices.report.numbers import show

# What people compare first; the report has every metric.
MAIN = {
    "ttft_s": "first token",
    "prefill_tokens_per_s": "prefill",
    "decode_tokens_per_s": "decode",
    "peak_memory_bytes": "peak memory",
}


def main_figures(result: Result) -> list[str]:
    """The value of each metric of MAIN, with its unit."""
    summaries = {name: result.summary(METRICS[name]) for name in MAIN}
    return [show(summary.value if summary else None, METRICS[name].unit) for name, summary in summaries.items()]


def figures_line(figures: Sequence[str]) -> str:
    """Of main_figures: `first token 42.0 ms, prefill 3,050 tokens/s, decode 390 tokens/s, peak memory 92.1 MB`."""
    return ", ".join(f"{label} {figure}" for label, figure in zip(MAIN.values(), figures, strict=True))


def figures_table(rows: Sequence[Sequence[str]], left: Container[int] = (0, 1)) -> str:
    """Cells in columns, those of `left` to the left, the others to the right; the first row is the header's."""
    widths = [max(len(row[place]) for row in rows if place < len(row)) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
