"""The metrics' definitions and the statistics, against values worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from devices.measure.intervals import bootstrap, interval
from devices.measure.measurement import Measurement, Run
from devices.measure.metrics import METRICS, summarize
from fakes.measurement import fake_measurement


def with_times(run: Run, at_s: list[float]) -> Run:
    return dataclasses.replace(run, token_at_s=at_s, token_ids=list(range(len(at_s))), completion_tokens=len(at_s))


def with_stamps(stamps: list[list[float]]) -> Measurement:
    """A measurement whose repetitions have these token times."""
    measurement = fake_measurement(repetitions=len(stamps))
    repetitions = [
        dataclasses.replace(each, run=with_times(each.run, at_s))
        for each, at_s in zip(measurement.repetitions, stamps, strict=True)
    ]
    return dataclasses.replace(measurement, repetitions=repetitions)


def value(name: str, measurement: Measurement) -> float | None:
    summary = summarize(METRICS[name], measurement)
    return summary.value if summary else None


def test_ttft_is_the_first_stamp_and_decode_counts_the_gaps() -> None:
    measurement = with_stamps([[0.5, 0.6, 0.7, 1.0]])
    assert value("ttft_s", measurement) == 0.5
    assert value("decode_tokens_per_s", measurement) == pytest.approx(3 / 0.5)


def test_prefill_counts_only_what_was_prefilled() -> None:
    assert value("prefill_tokens_per_s", fake_measurement()) == pytest.approx(32 / 0.049)


def test_one_token_has_no_decode_and_no_gap() -> None:
    measurement = fake_measurement(generate_tokens=1)
    assert value("decode_tokens_per_s", measurement) is None
    assert value("itl_p50_s", measurement) is None
    assert value("ttft_s", measurement) == pytest.approx(0.05)


def test_no_token_has_no_time_to_first_token() -> None:
    assert value("ttft_s", with_stamps([[]])) is None


def test_percentiles_pool_the_gaps_of_all_repetitions() -> None:
    measurement = with_stamps([[0.0, 1.0, 3.0], [0.0, 3.0, 7.0]])  # gaps 1 2 3 4
    assert value("itl_p50_s", measurement) == pytest.approx(2.5)
    assert value("itl_p90_s", measurement) == pytest.approx(float(np.quantile([1, 2, 3, 4], 0.9)))


def test_warm_and_cold_loads_are_distinguished() -> None:
    measurement = fake_measurement(repetitions=4)
    assert value("cold_load_s", measurement) == 0.9
    assert value("load_s", measurement) == pytest.approx(0.32)
    assert value("load_s", fake_measurement(repetitions=1)) is None


def test_unknown_page_cache_counts_as_warm_only_after_a_load() -> None:
    measurement = fake_measurement(repetitions=3)
    unknown = [dataclasses.replace(each, page_cache=None, cached_share=None) for each in measurement.repetitions]
    measurement = dataclasses.replace(measurement, repetitions=unknown)
    assert value("cold_load_s", measurement) is None
    assert value("load_s", measurement) == pytest.approx((0.31 + 0.32) / 2)


def test_what_was_not_measured_is_none_never_zero() -> None:
    assert value("peak_memory_bytes", fake_measurement(peak_bytes=None)) is None


def test_no_interval_below_five_repetitions() -> None:
    four, five = (summarize(METRICS["ttft_s"], fake_measurement(repetitions=count)) for count in (4, 5))
    assert four is not None and four.low is None and four.high is None
    assert five is not None and five.low is not None and five.high is not None


def test_equal_samples_have_an_interval_of_no_width() -> None:
    summary = summarize(METRICS["ttft_s"], fake_measurement())
    assert summary is not None and summary.low == summary.value == summary.high


def test_the_interval_is_reproducible_and_holds_the_median() -> None:
    groups = [np.array([float(number)]) for number in range(1, 22)]
    low, high = interval(bootstrap(groups, 0.5))
    assert (low, high) == interval(bootstrap(groups, 0.5))
    assert low < 11 < high
    # The exact 95 % interval of a median of 21 is from the 6th to the 16th order statistic.
    assert abs(low - 6) <= 1 and abs(high - 16) <= 1


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = interval(bootstrap([np.array([sample]) for sample in rng.normal(10, 1, size=15)], 0.5)[:400])
        covered += low <= 10 <= high
    assert covered >= 85


def test_series_are_resampled_whole() -> None:
    groups = [np.zeros(10), np.ones(10)]
    assert set(np.unique(bootstrap(groups, 0.5))) == {0.0, 0.5, 1.0}


def test_every_metric_has_a_definition_and_a_unit_in_its_name() -> None:
    for name, metric in METRICS.items():
        assert metric.definition.endswith(".")
        assert name.endswith(("_s", "_per_s", "_bytes", "_usd", "_share", "_j")) or metric.figure is not None


def test_energy_is_that_of_the_whole_request_by_the_tokens_of_its_answer() -> None:
    measured = fake_measurement(generate_tokens=16)
    metric = METRICS["energy_per_token_j"]
    assert summarize(metric, measured) is None
    told = [dataclasses.replace(each, energy_j=1.6, energy_source="RAPL, packages") for each in measured.repetitions]
    summary = summarize(metric, dataclasses.replace(measured, repetitions=told))
    assert summary is not None and summary.value == pytest.approx(0.1)
