"""The quality table as markdown, and loss against bytes as a plot. It measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ci.quality.result import Result
from export.verify.score.figures import Figure

GROUPS = {"float": "the float model", "ours": "Phi Edge", "peers": "others"}


def table(results: Sequence[Result], command: str) -> str:
    """GitHub markdown: a line for each row, then what made each of them."""
    ordered = sorted(results, key=lambda each: (list(GROUPS).index(each.group), each.bytes))
    lines = [
        "| | weights | KL, nats a token | same first choice | perplexity | questions |",
        "|---|---:|---:|---:|---:|---:|",
        *(_line(each) for each in ordered),
        "",
        f"{ordered[0].tokens:,} tokens in {ordered[0].blocks} blocks; in parentheses the 95 % interval. Made by "
        f"`{command}`, with these models:",
        "",
        *(f"- {each.label}: `{each.command}`, run by {each.engine}" for each in ordered),
    ]
    return "\n".join(lines)


def put(page: str, name: str, text: str) -> str:
    """`page` with `text` between its marks of this name. Raises ValueError where it has none."""
    begin, end = f"<!-- quality: {name} -->\n", f"<!-- /quality: {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no lines {begin.strip()} and {end}; write them where the table shall be")
    return f"{before}{begin}{text}\n{end}{after}"


def plot(results: Sequence[Result], file: Path) -> None:
    """KL against bytes with its intervals, as SVG; the same results give the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "quality"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for group, colour in (("ours", "tab:blue"), ("peers", "tab:orange")):
        mine = [each for each in results if each.group == group]
        if not mine:
            continue
        kl = [each.kl.value for each in mine]
        reach = [_reach(each.kl) for each in mine]
        axes.errorbar(
            [each.megabytes for each in mine], kl, yerr=list(zip(*reach, strict=True)),
            fmt="o", color=colour, capsize=3, label=GROUPS[group],
        )  # fmt: skip
        for each in mine:
            at = (each.megabytes, each.kl.value)
            axes.annotate(each.name, at, xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="weights, MB", ylabel="KL from the float model, nats a token", ylim=(0, None))
    axes.margins(x=0.15)
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _line(result: Result) -> str:
    is_float = result.group == "float"
    cells = [
        result.label,
        f"{result.megabytes:.1f} MB",
        "" if is_float else _figure(result.kl, "{:.3f}"),
        "" if is_float else _figure(result.top1_agreement, "{:.1%}"),
        _figure(result.perplexity, "{:.2f}"),
        f"{result.right} of {len(result.answers)}",
    ]
    return f"| {' | '.join(cells)} |"


def _figure(figure: Figure, shape: str) -> str:
    value = shape.format(figure.value)
    if figure.low is None or figure.high is None:
        return value
    return f"{value} ({shape.format(figure.low)} to {shape.format(figure.high)})"


def _reach(figure: Figure) -> tuple[float, float]:
    """How far the interval goes below and above."""
    if figure.low is None or figure.high is None:
        return 0.0, 0.0
    return figure.value - figure.low, figure.high - figure.value
