"""Numbers as people read them. What was not measured is "not measured", never 0."""

from __future__ import annotations

NOT_MEASURED = "not measured"
SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "share": ((0.01, "%"),),
    "J": ((1.0, "J"), (1e-3, "mJ")),
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
}


def scale(value: float, unit: str) -> tuple[float, str]:
    """The factor and the name of the unit that suits the value: (1e-3, "ms") for 0.0123 s."""
    scales = SCALES.get(unit, ((1.0, unit),))
    return next((each for each in scales if abs(value) >= each[0]), scales[-1])


def show(value: float | None, unit: str) -> str:
    """A value with its unit, to three digits: `12.3 ms`, `1.25 GB`, `104 tokens/s`."""
    if value is None:
        return NOT_MEASURED
    factor, name = scale(value, unit)
    return f"{digits(value / factor)} {name}".rstrip()


def show_interval(value: float, low: float | None, high: float | None, unit: str) -> str | None:
    """`11.2 to 12.9` in the unit in which `show` gives the value; None where there is no interval."""
    if low is None or high is None:
        return None
    factor, _ = scale(value, unit)
    return f"{digits(low / factor)} to {digits(high / factor)}"


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:,.0f}"
    if magnitude >= 9.995:
        return f"{value:.1f}"
    if magnitude >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3f}"
