"""lab.toml for tests, written by a library that quotes every value."""

from __future__ import annotations

from collections.abc import Mapping

import tomli_w


def lab_file(name: str, keys: Mapping[str, object]) -> str:
    """A lab file with one device; keys that are None are left out."""
    return tomli_w.dumps({"device": {name: {key: value for key, value in keys.items() if value is not None}}})
