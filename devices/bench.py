"""Measure an artifact on a device: every repetition is a fresh process. It computes no statistic (see metrics)."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from devices.errors import DeviceError
from devices.lab import Device
from devices.local import LocalWorker
from devices.measurement import (
    SCHEMA,
    DeviceFacts,
    Measurement,
    Memory,
    PageCache,
    Repetition,
    Run,
    Workload,
    describe_artifact,
    sha256_ids,
)
from export.artifact import Artifact, Manifest
from runtimes import pagecache
from runtimes.conditions import read_conditions

Step = Callable[[int, str], None]  # requests done so far, and what is being done


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do, in the units of the command line."""

    prompt_tokens: int = 128
    generate_tokens: int = 64
    repetitions: int = 5
    warmups: int = 1
    threads: int | None = None
    deadline_s: float = 600.0  # for each repetition

    @property
    def requests(self) -> int:
        """How many requests all repetitions make."""
        return self.repetitions * (self.warmups + 1)


def measure(artifact: Artifact, name: str, device: Device, plan: Plan, step: Step) -> Measurement:
    """Run the plan on the device. Raises DeviceError when a repetition fails: there is no half measurement."""
    manifest = artifact.manifest
    total = plan.prompt_tokens + plan.generate_tokens
    if total > manifest.context_tokens:
        raise DeviceError(
            f"{plan.prompt_tokens} prompt + {plan.generate_tokens} generated tokens are more than the artifact's "
            f"context of {manifest.context_tokens}; lower --prompt-tokens or --generate-tokens"
        )
    prompt = prompt_ids(manifest, plan.prompt_tokens)
    before = read_conditions()
    repetitions: list[Repetition] = []
    versions: dict[str, str] = {}
    for number in range(plan.repetitions):
        counted = functools.partial(_count_from, step, number * (plan.warmups + 1))
        repetition, versions = _repeat(artifact, device, plan, prompt, number == 0, counted)
        repetitions.append(repetition)
    return Measurement(
        schema=SCHEMA,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        artifact=describe_artifact(artifact),
        device=DeviceFacts(name=name, transport=device.transport),
        workload=Workload(
            prompt_tokens=plan.prompt_tokens,
            prompt_sha256=sha256_ids(prompt),
            generate_tokens=plan.generate_tokens,
            repetitions=plan.repetitions,
            warmups=plan.warmups,
            threads=plan.threads,
        ),
        versions=versions,
        before=before,
        after=read_conditions(),
        repetitions=repetitions,
    )


def prompt_ids(manifest: Manifest, count: int) -> list[int]:
    """The prompt: ordinary ids, the same for every artifact of one vocabulary.

    Speed does not depend on which ids they are; ids need no tokenizer and give exactly `count`.
    """
    tokens = manifest.tokens
    special = {tokens.bos, tokens.pad, *tokens.stop}
    ordinary = [id_ for id_ in range(manifest.model.vocab_size) if id_ not in special]
    return random.Random(0).choices(ordinary, k=count)


def _repeat(
    artifact: Artifact, device: Device, plan: Plan, prompt: Sequence[int], cold: bool, step: Step
) -> tuple[Repetition, dict[str, str]]:
    """One fresh process from its start to its end."""
    if cold:
        pagecache.drop([artifact.folder / name for name in artifact.manifest.files])
    cached_share = pagecache.cached_share(_weights(artifact))
    page_cache = _page_cache(cached_share)
    step(0, f"loading{f', {page_cache} page cache' if page_cache else ''}")
    worker = LocalWorker(device, artifact.folder, plan.threads, time.monotonic() + plan.deadline_s)
    try:
        load_s, ready = worker.ready()
        request = {"token_ids": prompt, "max_new_tokens": plan.generate_tokens, "ignore_stop_ids": True}
        warmups = []
        for number in range(plan.warmups):
            step(number, "warming up")
            warmups.append(_run(*worker.ask(request)))
        step(plan.warmups, "measuring")
        tokens, done = worker.ask(request)
        worker.finish()
    finally:
        worker.close()
    step(plan.warmups + 1, "done")
    repetition = Repetition(
        page_cache=page_cache,
        cached_share=cached_share,
        load_s=load_s,
        open_s=ready.get("open_s"),
        load_mode=done.get("load_mode"),
        warmups=warmups,
        run=_run(tokens, done),
    )
    return repetition, dict(ready.get("versions", {}))


def _count_from(step: Step, first: int, done: int, doing: str) -> None:
    step(first + done, doing)


def _weights(artifact: Artifact) -> list[Path]:
    """The files that make up the artifact's size; a runtime may never read the small ones beside them."""
    files = artifact.manifest.files
    largest = max(file.bytes for file in files.values())
    return [artifact.folder / name for name, file in files.items() if file.bytes * 20 >= largest]


def _page_cache(cached_share: float | None) -> PageCache | None:
    if cached_share is None:
        return None
    return "cold" if cached_share <= 0.05 else "warm" if cached_share >= 0.95 else "mixed"


def _run(tokens: Sequence[Mapping[str, Any]], done: Mapping[str, Any]) -> Run:
    """The facts of one answer, as its messages tell them."""
    if done["error"] is not None:
        raise DeviceError(f"the runtime failed in the middle of an answer: {done['error']}")
    ids = [token["id"] for token in tokens]
    usage, timings, memory = done["usage"], done["timings"], done["memory"] or {}
    return Run(
        finish=done["finish"],
        prompt_tokens=usage["prompt"],
        reused_tokens=usage["reused"],
        prefilled_tokens=usage["prefilled"],
        completion_tokens=usage["completion"],
        prefill_s=timings["prefill_s"],
        total_s=timings["total_s"],
        token_ids_sha256=sha256_ids(ids),
        token_ids=ids,
        token_at_s=[token["at_s"] for token in tokens],
        memory=Memory(
            peak_bytes=memory.get("peak_bytes"),
            anonymous_bytes=memory.get("anonymous_bytes"),
            file_bytes=memory.get("file_bytes"),
            swap_bytes=memory.get("swap_bytes"),
        ),
    )
