"""Hostile results: measurements, scores, and the budgets by which they are judged."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from devices.measure.measurement import ArtifactFacts, Measurement, Repetition, Run
from fakes.measurement import fake_measurement
from fakes.score import fake_score
from hostile.mutate import Grammar, mutate
from hostile.trial import Trial

BUDGETS: dict[str, Any] = {
    "noise_floor": 0.05,
    "budget": [
        {"match": {"target": "cpu", "device": "local"}, "max_ttft_s": 9.0, "min_decode_tokens_per_s": 1.0},
        {"match": {"format": "onnx"}, "max_artifact_bytes": 10**9, "max_peak_memory_bytes": 10**9},
    ],
}
VERBS = (
    ["report", "m.json", "--json", "-"],
    ["report", "m.json", "--markdown"],
    ["gate", "m.json", "--budgets", "b.toml"],
    ["gate", "m.json", "--baseline", "good.json"],
    ["gate", "good.json", "--baseline", "m.json"],
)


def sound(folder: Path) -> Sequence[str]:
    """A measurement that keeps its budgets."""
    for name in ("m.json", "good.json"):
        (folder / name).write_text(fake_measurement().to_json())
    (folder / "b.toml").write_text(tomli_w.dumps(BUDGETS))
    return VERBS[2]


def with_file(folder: Path, name: str, data: bytes) -> None:
    """A measurement that keeps its budgets, and these bytes as m.json, s.json or b.toml."""
    sound(folder)
    (folder / name).write_bytes(data)


DEFAULTS = {
    field.name: field.default
    for kind in (ArtifactFacts, Run, Repetition, Measurement)
    for field in dataclasses.fields(kind)
    if field.default is not dataclasses.MISSING
}
# What a device may not be able to say, and maps with keys of their own.
FREE = {"before", "after", "versions"}
FREE_IN = {"memory", "threads", "samples", "provider"} | {name for name, default in DEFAULTS.items() if default is None}


def measurement(rng: random.Random) -> Trial:
    """A measurement file with one fault."""
    content = json.loads(fake_measurement().to_json())
    grammar = Grammar(
        free=lambda path: path[0] in FREE or any(part in FREE_IN for part in path),
        needs_keys=lambda path: path[-1] not in DEFAULTS,
    )
    mutation = mutate(rng, content, grammar)
    words = rng.choice(VERBS)

    def make(folder: Path) -> Sequence[str]:
        with_file(folder, "m.json", mutation.data)
        return words

    return Trial(f"{' '.join(words)}: measurement {mutation.what}", make, mutation.breaks)


def score(rng: random.Random) -> Trial:
    """A score file with one fault, beside a sound measurement."""
    content = json.loads(fake_score(fake_measurement()).to_json())
    nullable = {"text", "reference", "questions", "threads", "digest", "low", "high", "versions"}
    grammar = Grammar(
        free=lambda path: any(part in nullable for part in path),
        needs_keys=lambda path: len(path) == 1,
    )
    mutation = mutate(rng, content, grammar)
    words = [*rng.choice(VERBS[:2]), "s.json"]

    def make(folder: Path) -> Sequence[str]:
        with_file(folder, "s.json", mutation.data)
        return words

    return Trial(f"score {mutation.what}", make, mutation.breaks)


def budget(rng: random.Random) -> Trial:
    """A budget file with one fault."""
    grammar = Grammar(write=as_toml, needs_keys=lambda path: False)
    mutation = mutate(rng, BUDGETS, grammar)

    def make(folder: Path) -> Sequence[str]:
        with_file(folder, "b.toml", mutation.data)
        return VERBS[2]

    # Half of a TOML file is often one.
    return Trial(f"budgets {mutation.what}", make, mutation.breaks and not mutation.what.startswith(("cut", "empty")))


def as_toml(tree: Any) -> bytes:
    """TOML, without the nulls that it does not have."""

    def without_null(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): without_null(each) for key, each in value.items() if each is not None}
        if isinstance(value, list):
            return [without_null(each) for each in value if each is not None]
        if isinstance(value, int) and abs(value) >= 2**63:
            return float(value)
        return value

    return tomli_w.dumps(without_null(tree)).encode("utf-8", "surrogatepass")
