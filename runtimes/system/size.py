"""Bytes as people read them. Standard library only; parse_size of export.request goes the other way."""

from __future__ import annotations

# Of a phone's memory, what Android and the app in front need: its low-memory killer ends what takes from that.
PHONE_SYSTEM_BYTES = 2_000_000_000


def size_text(count: float) -> str:
    """`1.25 GB`, `12.3 MB`, `4 kB`: in the unit that shows what there is, with at most two digits behind the point."""
    for factor, unit, digits in ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 0)):
        if abs(count) >= factor * 0.9995:
            return f"{count / factor:.{digits}f} {unit}"
    return f"{count:.0f} bytes"
