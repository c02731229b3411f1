"""A score as `phi-edge score` writes it, of a measurement's artifact."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from devices.measure.measurement import DeviceFacts, Measurement
from devices.measure.score import SCHEMA, Figure, ReferenceFacts, Score, TextFacts


def fake_score(measurement: Measurement, kl: float = 0.2) -> Score:
    """Every figure but exact match, with intervals."""
    return Score(
        schema=SCHEMA,
        created_at="2026-11-26T10:00:00+00:00",
        artifact=measurement.artifact,
        device=DeviceFacts(name="local", transport="process"),
        threads=None,
        versions={"onnxruntime": "1.31.0"},
        text=TextFacts(name="held_out.jsonl", sha256="0" * 64, blocks=73, scored_tokens=16384),
        reference=ReferenceFacts(name="tiny in float32", digest=None, kl_over="vocabulary"),
        questions=None,
        perplexity=Figure(value=34.0, low=32.0, high=36.0),
        reference_perplexity=Figure(value=30.0, low=28.0, high=32.0),
        perplexity_ratio=Figure(value=1.13, low=1.12, high=1.14),
        kl=Figure(value=kl, low=kl * 0.95, high=kl * 1.05),
        top1_agreement=Figure(value=0.76, low=0.75, high=0.77),
        exact_match=None,
    )


def write_score(path: Path, measurement: Measurement, kl: float = 0.2, digest: str | None = None) -> Path:
    """The score as a file; `digest` makes it another artifact's."""
    score = fake_score(measurement, kl)
    if digest is not None:
        score = dataclasses.replace(score, artifact=dataclasses.replace(score.artifact, digest=digest))
    path.write_text(score.to_json(), encoding="utf-8")
    return path
