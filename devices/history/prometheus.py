"""The newest figures of a history in Prometheus' text form, for the textfile collector of its node_exporter.

That collector takes no time stamps: how old a figure is, phi_edge_measured_timestamp_seconds says.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from devices.history.figures import FileFigures
from devices.history.series import group
from devices.measure.metrics import METRICS, Metric

LABELS = ("artifact", "device", "prompt_tokens", "generate_tokens", "threads")


def to_prometheus(files: Sequence[FileFigures]) -> str:
    """Of each artifact, device and workload: every metric of the newest valid measurement, when that was, and whether
    the newest of all is valid."""
    registry = CollectorRegistry()
    names = [name for name in METRICS if any(name in file.metrics for file in files)]
    gauges = {name: Gauge(_name(METRICS[name]), _help(METRICS[name]), LABELS, registry=registry) for name in names}
    measured = Gauge(
        "phi_edge_measured_timestamp_seconds", "When these figures were measured.", LABELS, registry=registry
    )
    valid = Gauge("phi_edge_newest_valid", "1 if the newest measurement is valid, else 0.", LABELS, registry=registry)
    for own in group(files).values():
        labels = _labels(own[-1])
        valid.labels(*labels).set(not own[-1].problems)
        good = next((file for file in reversed(own) if not file.problems), None)
        if good is None:
            continue
        if (made_s := good.made_s) is not None:
            measured.labels(*labels).set(made_s)
        for name, (value, *_) in good.metrics.items():
            gauges[name].labels(*labels).set(value)
    return generate_latest(registry).decode()


def _labels(file: FileFigures) -> list[str]:
    workload = (file.prompt_tokens, file.generate_tokens, file.threads)
    return [file.artifact, file.device, *("" if number is None else str(number) for number in workload)]


def _name(metric: Metric) -> str:
    """Prometheus spells units out: phi_edge_ttft_seconds, phi_edge_decode_tokens_per_second."""
    return f"phi_edge_{metric.name}{'econds' if metric.unit == 's' else 'econd' if metric.unit == 'tokens/s' else ''}"


def _help(metric: Metric) -> str:
    return f"{metric.definition} {metric.better.capitalize()} is better."
