"""A synthetic year of a lab: measurement files as `phi-edge bench` writes them, with changes at known nights.

Nothing here was measured. It is made for the figures and the picture of docs/lab.md, and its page says what it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

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

LAST = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)  # a Monday
PROMPT, GENERATE, REPETITIONS = 128, 64, 5


@dataclass(frozen=True)
class Phone:
    """A device: how fast, how noisy and how warm it is."""

    transport: str
    tokens_per_s: float
    noise: float
    idle_c: float
    full_c: float
    hertz: int


DEVICES: Mapping[str, Phone] = {
    "pi5": Phone("ssh", 8.4, 0.008, 48, 71, 2_400_000_000),
    "pi5-fanless": Phone("ssh", 7.9, 0.025, 56, 82, 2_400_000_000),
    "pi4": Phone("ssh", 2.6, 0.006, 45, 68, 1_800_000_000),
    "pixel8": Phone("adb", 11.8, 0.03, 31, 44, 2_910_000_000),
    "pixel6a": Phone("adb", 8.1, 0.035, 30, 45, 2_800_000_000),
    "galaxy-a54": Phone("adb", 6.2, 0.03, 31, 43, 2_400_000_000),
    "galaxy-s24": Phone("adb", 15.3, 0.025, 30, 46, 3_200_000_000),
    "surface": Phone("windows", 18.9, 0.02, 41, 78, 3_400_000_000),
    "mini-pc": Phone("windows", 22.4, 0.012, 39, 74, 4_700_000_000),
    "desk": Phone("local", 27.5, 0.01, 38, 66, 5_100_000_000),
}


@dataclass(frozen=True)
class Model:
    """An artifact: its speed by the first one's, and its size."""

    format: str
    scheme: str
    speed: float
    bytes: int


MODELS: Mapping[str, Model] = {
    "mini-4k-b32": Model("onnx", "int4-b32", 1.0, 2_290_000_000),
    "mini-4k-b64-e8": Model("onnx", "int4-b64-e8", 1.09, 2_180_000_000),
    "mini-4k-gptq": Model("onnx", "int4-b32", 1.0, 2_290_000_000),
    "mini-128k-b32": Model("onnx", "int4-b32", 0.97, 2_300_000_000),
    "mini-4k-pte": Model("executorch", "int4-b32", 0.88, 2_350_000_000),
    "phi4-mini-b32": Model("onnx", "int4-b32", 0.91, 2_710_000_000),
}


def nights(count: int, seed: int = 1) -> Iterator[Measurement]:
    """Every artifact on every device, `count` nights up to LAST."""
    random = np.random.default_rng(seed)
    for number in range(count):
        ago = count - 1 - number
        for device in DEVICES:
            for model in MODELS:
                if not _absent(device, ago):
                    yield _measurement(model, device, ago, random)


def _absent(device: str, ago: int) -> bool:
    return device == "galaxy-a54" and ago < 3  # its cable is out


def _versions(model: str, device: str, ago: int) -> dict[str, str]:
    if MODELS[model].format == "executorch":
        return {"executorch": "1.4.1"}
    new = ago < (5 if DEVICES[device].transport == "ssh" else 140)
    return {"onnxruntime": "1.32.0" if new else "1.31.0", "python": "3.11.9"}


def _speed(model: str, device: str, ago: int) -> float:
    """What is planted: a slower engine on the boards, a better export, a battery that ages."""
    speed = DEVICES[device].tokens_per_s * MODELS[model].speed
    if device in ("pi5", "pi5-fanless") and MODELS[model].format == "onnx" and ago < 5:
        speed *= 0.92
    if model == "mini-4k-pte" and ago < 11:
        speed *= 1.13
    if model == "mini-4k-gptq" and ago < 48:
        speed *= 1.05
    if device == "surface" and ago < 75:
        speed *= 0.95
    return speed


def _measurement(model: str, device: str, ago: int, random: np.random.Generator) -> Measurement:
    row, phone = MODELS[model], DEVICES[device]
    at = LAST - timedelta(days=ago) + timedelta(minutes=7 * list(MODELS).index(model))
    export = f"{model}{ago < 11 if model == 'mini-4k-pte' else ago < 48}"
    night = _speed(model, device, ago) * np.exp(random.normal(0, phone.noise))
    swaps = device == "pixel6a" and model == "phi4-mini-b32" and ago == 0
    made = [_repetition(night, number, row, phone, at, swaps, random) for number in range(REPETITIONS)]
    return Measurement(
        schema=SCHEMA,
        created_at=(at + timedelta(minutes=6)).isoformat(timespec="seconds"),
        artifact=ArtifactFacts(
            name=model,
            digest=hashlib.sha256(export.encode()).hexdigest(),
            format=row.format,
            target="cpu",
            scheme=row.scheme,
            source="synthetic",
            model_type="phi3",
            parameters=3_821_079_552,
            context_tokens=4096,
            artifact_bytes=row.bytes,
            weights_bytes=row.bytes - 4_000_000,
            kv_bytes_per_token=393_216,
        ),
        device=DeviceFacts(name=device, transport=phone.transport),
        workload=Workload(
            prompt_tokens=PROMPT,
            prompt_sha256="0" * 64,
            generate_tokens=GENERATE,
            repetitions=REPETITIONS,
            warmups=0,
            threads=None,
        ),
        versions=_versions(model, device, ago),
        before=_conditions(at, phone, 0),
        after=_conditions(at + timedelta(minutes=6), phone, 1),
        repetitions=made,
    )


def _repetition(
    speed: float, number: int, row: Model, phone: Phone, at: datetime, swaps: bool, random: np.random.Generator
) -> Repetition:
    speed *= float(np.exp(random.normal(0, phone.noise / 2)))
    gaps = random.gamma(60, 1 / 60, GENERATE) / speed
    prefill_s = PROMPT / (speed * 7.5)
    stamps = np.round(prefill_s + np.cumsum(gaps), 6).tolist()
    begin = at + timedelta(seconds=70 * number)
    run = Run(
        finish="length",
        prompt_tokens=PROMPT,
        reused_tokens=0,
        prefilled_tokens=PROMPT,
        completion_tokens=GENERATE,
        prefill_s=prefill_s,
        total_s=stamps[-1],
        token_ids_sha256=sha256_ids(_ids()),
        token_ids=_ids(),
        token_at_s=stamps,
        memory=MemoryUse(
            peak_bytes=int(row.bytes * 1.04 + random.normal(0, 2e6)),
            anonymous_bytes=300_000_000,
            file_bytes=row.bytes,
            swap_bytes=41_000_000 if swaps and number == 3 else 0,
        ),
    )
    warmth = 1 - 0.6 ** (number + 1)
    return Repetition(
        page_cache="cold" if number == 0 else "warm",
        cached_share=0.0 if number == 0 else 1.0,
        load_s=float(row.bytes / (3e8 if number == 0 else 1.6e9) * np.exp(random.normal(0, 0.03))),
        open_s=None,
        load_mode="mmap",
        warmups=(),
        run=run,
        entered=_conditions(begin, phone, 0.3 * warmth),
        left=_conditions(begin + timedelta(seconds=45), phone, warmth),
        waited_s=12.0,
    )


def _ids() -> Sequence[int]:
    return list(range(1000, 1000 + GENERATE))


def _conditions(at: datetime, phone: Phone, warmth: float) -> Conditions:
    slowed = phone.full_c >= 80 and warmth > 0.85
    return Conditions(
        at=at.isoformat(timespec="seconds"),
        system="Linux 6.12 aarch64",
        boot_id="synthetic",
        cpu_model=None,
        logical_cores=4,
        allowed_cores=4,
        governor=None,
        frequency_hz=[int(phone.hertz * (0.8 if slowed else 1.0))] * 4,
        temperature_c=None,
        load_average_1min=0.1,
        busy_share=0.02,
        memory_total_bytes=8_000_000_000,
        memory_available_bytes=6_000_000_000,
        swap_total_bytes=None,
        swap_used_bytes=None,
        processor_c=phone.idle_c + warmth * (phone.full_c - phone.idle_c),
    )
