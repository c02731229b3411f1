"""A measurement without a device, for tests of everything above the bench: fixed times, no clock, no randomness."""

from __future__ import annotations

from collections.abc import Sequence

from devices.measure.measurement import (
    SCHEMA,
    ArtifactFacts,
    DeviceFacts,
    Measurement,
    Repetition,
    Run,
    Workload,
    sha256_ids,
)
from runtimes.api import MemoryUse
from runtimes.system.conditions import Conditions


def fake_measurement(
    *,
    name: str = "tiny-cpu",
    format: str = "onnx",
    target: str = "cpu",
    repetitions: int = 5,
    generate_tokens: int = 16,
    gap_s: float = 0.010,
    peak_bytes: int | None = 100_000_000,
) -> Measurement:
    """A valid measurement; token gaps are around `gap_s`, a little longer in each later repetition."""
    return Measurement(
        schema=SCHEMA,
        created_at="2026-01-01T00:00:00+00:00",
        artifact=ArtifactFacts(
            name=name,
            digest="0123456789abcdef" * 4,
            format=format,
            target=target,
            scheme="int4-b32",
            source="tiny",
            model_type="phi3",
            parameters=3_000_000,
            context_tokens=512,
            artifact_bytes=2_500_000,
            weights_bytes=2_000_000,
            kv_bytes_per_token=1024,
        ),
        device=DeviceFacts(name="local", transport="local"),
        workload=Workload(
            prompt_tokens=32,
            prompt_sha256=sha256_ids(range(32)),
            generate_tokens=generate_tokens,
            repetitions=repetitions,
            warmups=1,
            threads=2,
        ),
        versions={"python": "3.11.0"},
        before=fake_conditions(),
        after=fake_conditions(),
        repetitions=[
            _repetition(number, generate_tokens, gap_s * (1 + number / 100), peak_bytes)
            for number in range(repetitions)
        ],
    )


def fake_conditions() -> Conditions:
    """A board on which most things can be read."""
    return Conditions(
        at="2026-01-01T00:00:00+00:00",
        system="Linux 6.1.0 aarch64",
        boot_id="00000000-0000-0000-0000-000000000000",
        cpu_model="Fake Board",
        logical_cores=4,
        allowed_cores=4,
        governor="ondemand",
        frequency_hz=[2_400_000_000] * 4,
        temperature_c={"thermal_zone0 cpu": 51.5},
        load_average_1min=0.1,
        busy_share=0.02,
        memory_total_bytes=8_000_000_000,
        memory_available_bytes=6_000_000_000,
        swap_total_bytes=None,
        swap_used_bytes=None,
    )


def _repetition(number: int, generate_tokens: int, gap_s: float, peak_bytes: int | None) -> Repetition:
    stamps = [0.050 + gap_s * (token + (token % 4) / 10) for token in range(generate_tokens)]
    run = _run(stamps, peak_bytes)
    return Repetition(
        page_cache="cold" if number == 0 else "warm",
        cached_share=0.0 if number == 0 else 1.0,
        load_s=0.9 if number == 0 else 0.3 + number / 100,
        open_s=0.2,
        load_mode="mmap",
        warmups=[run],
        run=run,
    )


def _run(stamps: Sequence[float], peak_bytes: int | None) -> Run:
    ids = [1000 + token for token in range(len(stamps))]
    known = peak_bytes is not None
    return Run(
        finish="length",
        prompt_tokens=32,
        reused_tokens=0,
        prefilled_tokens=32,
        completion_tokens=len(ids),
        prefill_s=0.049,
        total_s=stamps[-1] if stamps else None,
        token_ids_sha256=sha256_ids(ids),
        token_ids=ids,
        token_at_s=stamps,
        memory=MemoryUse(
            peak_bytes=peak_bytes,
            anonymous_bytes=60_000_000 if known else None,
            file_bytes=38_000_000 if known else None,
            swap_bytes=0 if known else None,
        ),
    )
