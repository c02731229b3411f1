"""Measure a model that a service runs: the same plan, the same file, over connections of its own for each repetition.

The clock is this machine's, so the network is in every time. The prompt is text of about the length that was asked for;
what counts is what the service counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import secrets
from datetime import UTC, datetime

from devices.drivers.cloud.device import CloudDevice
from devices.drivers.cloud.driver import CloudDriver
from devices.errors import DeviceError
from devices.measure.bench import Plan, Step
from devices.measure.measurement import (
    SCHEMA,
    ArtifactFacts,
    DeviceFacts,
    Measurement,
    Repetition,
    Run,
    ServiceFacts,
    Workload,
    sha256_ids,
)
from devices.transports.cloud.runtime import CloudRuntime
from runtimes.api import DoneEvent, GenerateRequest, MemoryUse, Message

NOT_KNOWN = "not known"
WORDS = ("time", "year", "way", "day", "thing", "life", "child", "world", "school", "state", "family", "group", "hand")
TASK = "Leave these words alone, and count from one upwards in English words, one number a line. Do not stop early."
TASK_TOKENS = 40  # about: the task, the mark at the beginning, what the service puts around a message


def measure_service(driver: CloudDriver, plan: Plan, step: Step) -> Measurement:
    """Run the plan. Raises DeviceError and RuntimesError when a request fails: there are no partial measurements."""
    before = driver.conditions()
    repetitions = [_repeat(driver, plan, number, step) for number in range(plan.repetitions)]
    words = _words(plan.prompt_tokens)
    return Measurement(
        schema=SCHEMA,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        artifact=describe_service(driver.device),
        device=DeviceFacts(name=driver.name, transport=driver.device.transport),
        workload=Workload(
            prompt_tokens=plan.prompt_tokens,
            prompt_sha256=hashlib.sha256(words.encode()).hexdigest(),
            generate_tokens=plan.generate_tokens,
            repetitions=plan.repetitions,
            warmups=plan.warmups,
            threads=None,
        ),
        versions=repetitions[-1].versions or {},
        before=before,
        after=driver.conditions(),
        repetitions=repetitions,
    )


def describe_service(device: CloudDevice) -> ArtifactFacts:
    """What a measurement carries in place of an artifact's facts. The digest is of what was asked, and where: the
    service may change the model behind its name."""
    asked = f"{device.transport} {device.url} {device.model}"
    price = device.price
    return ArtifactFacts(
        name=device.model,
        digest=hashlib.sha256(asked.encode()).hexdigest(),
        format=device.transport,
        target="cloud",
        scheme=NOT_KNOWN,
        source=device.url,
        model_type=NOT_KNOWN,
        parameters=None,
        context_tokens=None,
        artifact_bytes=None,
        weights_bytes=None,
        kv_bytes_per_token=None,
        service=ServiceFacts(
            url=device.url,
            input_usd_per_million=None if price is None else price.input_usd_per_million,
            output_usd_per_million=None if price is None else price.output_usd_per_million,
        ),
    )


def _repeat(driver: CloudDriver, plan: Plan, number: int, step: Step) -> Repetition:
    """New connections, the warm-ups over them, and the measured request. A refused request is not sent again."""
    done = number * (plan.warmups + 1)
    with contextlib.closing(driver.open_runtime(timeout_s=plan.deadline_s, retries=0)) as runtime:
        warmups = []
        for warmup in range(plan.warmups):
            step(done + warmup, "warming up")
            warmups.append(_answer(runtime, plan))
        step(done + plan.warmups, "measuring")
        run = _answer(runtime, plan)
        versions = {driver.device.transport: runtime.client_version, "model": runtime.answered_by or NOT_KNOWN}
    step(done + plan.warmups + 1, "done")
    return Repetition(
        page_cache=None,
        cached_share=None,
        load_s=None,
        open_s=None,
        load_mode=None,
        warmups=warmups,
        run=run,
        versions=versions,
    )


def _answer(runtime: CloudRuntime, plan: Plan) -> Run:
    # The mark is new each time, so that no service has computed this prompt before.
    prompt = f"{secrets.token_hex(4)}: {_words(plan.prompt_tokens)}\n{TASK}"
    request = GenerateRequest(messages=[Message("user", prompt)], max_new_tokens=plan.generate_tokens)
    stamps: list[float] = []
    done: DoneEvent | None = None
    with contextlib.closing(runtime.generate(request)) as events:
        for event in events:
            if isinstance(event, DoneEvent):
                done = event
            elif event.at_s is not None:
                stamps.append(event.at_s)
                if event.at_s > plan.deadline_s:
                    raise DeviceError(f"an answer took longer than {plan.deadline_s:g} s; raise --deadline-s")
    assert done is not None
    if not stamps:
        raise DeviceError(
            f"the service answered without text: its {done.usage.completion} tokens went into something else, such as "
            "thinking; raise --generate-tokens, or ask a model that does not think"
        )
    return Run(
        finish=done.finish,
        prompt_tokens=done.usage.prompt,
        reused_tokens=done.usage.reused,
        prefilled_tokens=done.usage.prefilled,
        completion_tokens=done.usage.completion,
        prefill_s=None,
        total_s=done.timings.total_s,
        token_ids_sha256=sha256_ids(()),
        token_ids=(),
        token_at_s=(),
        memory=MemoryUse(),
        first_token_s=stamps[0],
        last_token_s=stamps[-1],
        piece_at_s=stamps,
    )


def _words(prompt_tokens: int) -> str:
    """The same words for every service, each of one token in most vocabularies."""
    return " ".join(random.Random(0).choices(WORDS, k=max(1, prompt_tokens - TASK_TOKENS)))
