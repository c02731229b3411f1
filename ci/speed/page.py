"""A comparison of engines as Markdown and as a plot."""

from __future__ import annotations

import statistics
from operator import attrgetter
from pathlib import Path

from ci.speed.result import Comparison, spread


def reference(comparison: Comparison) -> str:
    """The contender that the others are compared with: llama.cpp where it ran, else the first."""
    names = comparison.contenders
    return next((name for name in names if name.endswith("llama.cpp")), names[0])


def table(comparison: Comparison) -> str:
    """Markdown: a row for each prompt and contender. Medians with the range of the rounds; ratios of medians."""
    bandwidth = statistics.median(comparison.bandwidth_bytes_per_s) / 1e9
    base = reference(comparison)
    lines = [
        f"{comparison.machine}, {comparison.threads} threads, memory read at {bandwidth:.1f} GB/s; "
        f"{comparison.generate_tokens} tokens generated; `x` is the ratio to {base}, `of the bound` to what reading a "
        "token's bytes alone would allow.",
        "",
        "| prompt | | prefill, tokens/s | x | decode, tokens/s | x | of the bound | first token | load | peak memory |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for prompt in comparison.prompts:
        for name in comparison.contenders:
            if comparison.of(name, prompt):
                lines.append(f"| {prompt} | {name} | {cells(comparison, name, prompt, base)} |")
    return "\n".join(lines)


def cells(comparison: Comparison, name: str, prompt: int, base: str) -> str:
    """The figures of one row."""
    runs, others = comparison.of(name, prompt), comparison.of(base, prompt)
    prefill = spread(runs, lambda run: run.prefill_tokens_per_s)
    decode = spread(runs, lambda run: run.decode_tokens_per_s)
    ratios = ["", ""]
    if others:
        their_prefill = spread(others, lambda run: run.prefill_tokens_per_s)
        their_decode = spread(others, lambda run: run.decode_tokens_per_s)
        ratios = [f"{prefill.median / their_prefill.median:.2f}", f"{decode.median / their_decode.median:.2f}"]
    bound = comparison.bound(name, prompt)
    share = f"{decode.median / bound:.0%}" if bound else ""
    first, load = spread(runs, lambda run: run.ttft_s), spread(runs, lambda run: run.load_s)
    peak = spread(runs, lambda run: run.peak_memory_bytes / 1e9)
    figures = [f"{prefill:.1f}", ratios[0], f"{decode:.1f}", ratios[1], share]
    return " | ".join([*figures, f"{first.median:.2f} s", f"{load.median:.1f} s", f"{peak.median:.2f} GB"])


def plot(comparison: Comparison, path: Path) -> None:
    """Prefill on the left and decode on the right, against the prompt's length; dashed, what memory would allow."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name in comparison.contenders:
        prompts = [prompt for prompt in comparison.prompts if comparison.of(name, prompt)]
        for axis, metric in zip(axes, ("prefill_tokens_per_s", "decode_tokens_per_s"), strict=True):
            some = [spread(comparison.of(name, prompt), attrgetter(metric)) for prompt in prompts]
            below = [each.median - each.low for each in some]
            above = [each.high - each.median for each in some]
            label = name if axis is axes[0] else None
            line = axis.errorbar(prompts, [each.median for each in some], [below, above], marker="o", label=label)
        bounds = [(prompt, bound) for prompt in prompts if (bound := comparison.bound(name, prompt))]
        if bounds:
            axes[1].plot(*zip(*bounds, strict=True), linestyle="--", linewidth=1, color=line[0].get_color())
    for axis, title in zip(axes, ("prefill, tokens/s", "decode, tokens/s"), strict=True):
        axis.set(title=title, xlabel="prompt tokens", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)
