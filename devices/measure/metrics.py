"""The metrics, defined once: from raw samples to the numbers that are printed. The table METRICS is the registry.

A metric is a quantile of samples pooled over repetitions: the median where each repetition gives one sample, a
percentile where it gives a series. Intervals are bootstrapped over repetitions, whose gaps stay together. What a score
says of an artifact is a metric, too, with the interval that the score has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from devices.measure.intervals import bootstrap, interval
from devices.measure.measurement import Followed, Measurement, Repetition
from devices.measure.score import Figure, Score

Samples = Sequence[float]  # of one repetition
LEAST_REPETITIONS = 5  # with fewer, a bootstrap interval would be too narrow


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics."""

    name: str  # with its unit
    label: str
    unit: Literal["s", "tokens/s", "bytes", "nats", "share", "USD", "J", ""]
    better: Literal["lower", "higher"]
    samples: Callable[[Measurement], Sequence[Samples]]  # one entry per repetition that has any
    definition: str
    quantile: float = 0.5
    exact: bool = False  # counted, not sampled: one measurement is enough
    by_chance: bool = False  # not every measurement of the same artifact has it
    figure: Callable[[Score], Figure | None] | None = None  # of a score; then a measurement has no samples


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A metric of a measurement, as printed. `low` and `high` bound the 95 % interval; None below 5 repetitions."""

    value: float
    low: float | None
    high: float | None
    samples: Sequence[float]  # pooled, raw


def summarize(metric: Metric, measurement: Measurement, *, bounds: bool = True) -> Summary | None:
    """The metric's value and, unless `bounds` is False, its interval; None where it was not measured."""
    groups = [np.asarray(group, dtype=np.float64) for group in metric.samples(measurement) if len(group)]
    if not groups:
        return None
    pooled = np.concatenate(groups)
    low = high = None
    if bounds and len(groups) >= LEAST_REPETITIONS:
        low, high = interval(bootstrap(groups, metric.quantile))
    value = float(np.quantile(pooled, metric.quantile))
    return Summary(value=value, low=low, high=high, samples=pooled.tolist())


def ttft_s(repetition: Repetition) -> float | None:
    """The first token's stamp: the clock started when the request was accepted."""
    stamps = repetition.run.token_at_s
    return stamps[0] if stamps else repetition.run.first_token_s


def prefill_tokens_per_s(repetition: Repetition) -> float | None:
    """Prompt tokens actually prefilled by the time to the first logits."""
    run = repetition.run
    return run.prefilled_tokens / run.prefill_s if run.prefill_s else None


def decode_tokens_per_s(repetition: Repetition) -> float | None:
    """Tokens after the first by the time they took; None for an answer of one token."""
    run = repetition.run
    first, last = (run.token_at_s[0], run.token_at_s[-1]) if run.token_at_s else (run.first_token_s, run.last_token_s)
    if first is None or last is None or last <= first:
        return None
    return ((len(run.token_at_s) or run.completion_tokens) - 1) / (last - first)


def itl_s(repetition: Repetition) -> list[float]:
    """Every gap between two tokens, or between two pieces of a service's stream."""
    run = repetition.run
    return [after - before for before, after in itertools.pairwise(run.token_at_s or run.piece_at_s)]


def _each(value: Callable[[Repetition], float | None]) -> Callable[[Measurement], list[Samples]]:
    def samples(measurement: Measurement) -> list[Samples]:
        found = [value(repetition) for repetition in measurement.repetitions]
        return [(one,) for one in found if one is not None]

    return samples


def _warm_load(measurement: Measurement) -> list[Samples]:
    # Where the page cache is unknown, the first repetition may be cold or warm; the later ones are warm.
    return [
        (repetition.load_s,)
        for number, repetition in enumerate(measurement.repetitions)
        if repetition.load_s is not None
        and (repetition.page_cache == "warm" or (repetition.page_cache is None and number > 0))
    ]


def _itl(measurement: Measurement) -> list[Samples]:
    return [itl_s(repetition) for repetition in measurement.repetitions]


def _energy_per_token_j(repetition: Repetition) -> float | None:
    tokens = repetition.run.completion_tokens
    return repetition.energy_j / tokens if repetition.energy_j is not None and tokens else None


def _agreed(reference: Followed | None) -> float | None:
    return reference.agreed / reference.tokens if reference is not None and reference.tokens else None


def _unmeasured(measurement: Measurement) -> list[Samples]:
    return []


def _artifact(measurement: Measurement) -> list[Samples]:
    size = measurement.artifact.artifact_bytes
    return [] if size is None else [(size,)]


def _cost(measurement: Measurement) -> list[Samples]:
    service = measurement.artifact.service
    if service is None or service.input_usd_per_million is None or service.output_usd_per_million is None:
        return []
    runs = [repetition.run for repetition in measurement.repetitions]
    read, written = service.input_usd_per_million / 1e3, service.output_usd_per_million / 1e3
    return [(read * run.prompt_tokens + written * run.completion_tokens,) for run in runs]


ITL = "Every gap between two tokens of an answer, all repetitions together; {} % of the gaps are shorter."

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "load_s",
            "Load, warm",
            "s",
            "lower",
            _warm_load,
            "From the start of the process to its ready line, when the artifact's files are in the page cache.",
            by_chance=True,
        ),
        Metric(
            "cold_load_s",
            "Load, cold",
            "s",
            "lower",
            _each(lambda repetition: repetition.load_s if repetition.page_cache == "cold" else None),
            "The same when the artifact's files must come from the disk, as after a restart of the device.",
            by_chance=True,
        ),
        Metric(
            "ttft_s",
            "Time to first token",
            "s",
            "lower",
            _each(ttft_s),
            "From the acceptance of the request to the first sampled token: prefill and sampling included.",
        ),
        Metric(
            "prefill_tokens_per_s",
            "Prefill",
            "tokens/s",
            "higher",
            _each(prefill_tokens_per_s),
            "Prompt tokens that were computed, divided by the time to the first logits.",
        ),
        Metric(
            "decode_tokens_per_s",
            "Decode",
            "tokens/s",
            "higher",
            _each(decode_tokens_per_s),
            "Generated tokens but the first, divided by the time between the first and the last.",
        ),
        Metric("itl_p50_s", "Inter-token p50", "s", "lower", _itl, ITL.format(50), 0.50),
        Metric("itl_p90_s", "Inter-token p90", "s", "lower", _itl, ITL.format(90), 0.90),
        Metric("itl_p95_s", "Inter-token p95", "s", "lower", _itl, ITL.format(95), 0.95),
        Metric("itl_p99_s", "Inter-token p99", "s", "lower", _itl, ITL.format(99), 0.99),
        Metric(
            "peak_memory_bytes",
            "Peak memory",
            "bytes",
            "lower",
            _each(lambda repetition: repetition.run.memory.peak_bytes),
            "The most memory of the process that holds the model, with what was swapped out.",
        ),
        Metric(
            "peak_committed_bytes",
            "Peak committed memory",
            "bytes",
            "lower",
            _each(lambda repetition: repetition.run.memory.committed_bytes),
            "Windows: the most memory of the process's own, paged out or not; files mapped into it do not count.",
        ),
        Metric(
            "peak_gpu_memory_bytes",
            "Peak GPU memory",
            "bytes",
            "lower",
            _each(lambda repetition: repetition.run.memory.gpu_bytes),
            "Windows: the most that the process used of the graphics adapters' own memory.",
        ),
        Metric(
            "peak_gpu_shared_bytes",
            "Peak GPU memory, shared",
            "bytes",
            "lower",
            _each(lambda repetition: repetition.run.memory.gpu_shared_bytes),
            "Windows: the most of the host's memory that the graphics adapters used; do not add it to the others.",
        ),
        Metric(
            "artifact_bytes",
            "Artifact size",
            "bytes",
            "lower",
            _artifact,
            "All files of the artifact together: what is pushed to a device.",
            exact=True,
        ),
        Metric(
            "energy_per_token_j",
            "Energy per token",
            "J",
            "lower",
            _each(_energy_per_token_j),
            "What the machine used during the request, prefill included, by the tokens of the answer. What is counted "
            "depends on the machine: compare it with itself.",
            by_chance=True,
        ),
        Metric(
            "reference_share",
            "Reference answer",
            "share",
            "higher",
            _each(lambda repetition: _agreed(repetition.reference)),
            "Of the answer that the export's engine gave to a fixed prompt: the tokens before the first that differs "
            "here, in the worst repetition. Another processor may round a near tie otherwise.",
            quantile=0.0,
            exact=True,
            by_chance=True,
        ),
        Metric(
            "cost_per_1000_answers_usd",
            "Cost of 1,000 answers",
            "USD",
            "lower",
            _cost,
            "What a service asks for 1,000 such answers by the lab file's price; cached prompts at the full price.",
        ),
        Metric(
            "kl",
            "KL",
            "nats",
            "lower",
            _unmeasured,
            "Nats a token by which the artifact's distribution of the next token differs from the reference's.",
            figure=lambda score: score.kl,
        ),
        Metric(
            "top1_agreement",
            "Top-1 agreement",
            "share",
            "higher",
            _unmeasured,
            "How often the artifact and the reference prefer the same next token.",
            figure=lambda score: score.top1_agreement,
        ),
        Metric(
            "perplexity",
            "Perplexity",
            "",
            "lower",
            _unmeasured,
            "e to the mean loss of a token. It depends on the text: compare it on the same text only.",
            figure=lambda score: score.perplexity,
        ),
        Metric(
            "exact_match",
            "Exact match",
            "share",
            "higher",
            _unmeasured,
            "How many of the score's questions were answered right.",
            figure=lambda score: score.exact_match,
        ),
    )
}
