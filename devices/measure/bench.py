"""Measure an artifact on a device: every repetition is a fresh process. It computes no statistic (see metrics)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from devices.drivers.driver import Driver, Loading, Opened
from devices.energy.command import command_meter
from devices.energy.meter import Meter
from devices.errors import DeviceError, NotReadyError
from devices.measure.contender import (
    Contender,
    context_of,
    facts_of,
    open_on,
    prompt_of,
    reference_of,
    stage,
)
from devices.measure.measurement import (
    SCHEMA,
    DeviceFacts,
    Dropped,
    Followed,
    Measurement,
    PageCache,
    Repetition,
    Run,
    Workload,
    sha256_ids,
)
from devices.measure.readiness import NO_GATE, Readiness, wait_until_ready
from runtimes.api import MemoryUse
from runtimes.loop.tokens import NewToken, TokenRecord, TokenRequest, TokensDone
from runtimes.system.conditions import Conditions

MOST_DROPPED = 3
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
    readiness: Readiness = NO_GATE
    meter: Sequence[str] | None = None  # Device.meter

    @property
    def tokens(self) -> int:
        """Of prompt and answer."""
        return self.prompt_tokens + self.generate_tokens

    @property
    def requests(self) -> int:
        """How many requests all repetitions make."""
        return self.repetitions * (self.warmups + 1)


def measure(contender: Contender, device: DeviceFacts, driver: Driver, plan: Plan, step: Step) -> Measurement:
    """Run the plan on the device.

    Raises DeviceError or TransportError when a repetition fails: there are no partial measurements.
    """
    check_context(contender, plan)
    stage(driver, contender, functools.partial(step, 0))
    before = driver.conditions()
    repetitions: list[Repetition] = []
    dropped: list[Dropped] = []
    while len(repetitions) < plan.repetitions:
        made = repeat(contender, driver, plan, len(repetitions), step)
        if isinstance(made, Repetition):
            repetitions.append(made)
        else:
            dropped.append(made)
            give_up(dropped)
    return assemble(contender, device, plan, (before, driver.conditions()), repetitions, dropped)


def check_context(contender: Contender, plan: Plan) -> None:
    """Refuse a workload that is longer than the context. Raises DeviceError."""
    context = context_of(contender)
    if context is not None and plan.tokens > context:
        raise DeviceError(
            f"{plan.prompt_tokens} prompt + {plan.generate_tokens} generated tokens are more than the artifact's "
            f"context of {context}; lower --prompt-tokens or --generate-tokens"
        )


def give_up(dropped: Sequence[Dropped]) -> None:
    """Raises NotReadyError after MOST_DROPPED repetitions for which the device was not ready."""
    if len(dropped) >= MOST_DROPPED:
        raise NotReadyError(f"{dropped[-1].reason}; it is given up after {MOST_DROPPED} such waits")


def repeat(contender: Contender, driver: Driver, plan: Plan, number: int, step: Step) -> Repetition | Dropped:
    """Repetition `number` of what was staged: wait until the device is ready, then one fresh process.

    Raises DeviceError and TransportError.
    """
    counted = functools.partial(_count_from, step, number * (plan.warmups + 1))
    ready = None
    if plan.readiness.wait_s is not None:
        try:
            ready = wait_until_ready(driver.conditions, plan.readiness, functools.partial(counted, 0))
        except NotReadyError as error:
            return Dropped(number=number, waited_s=plan.readiness.wait_s, reason=str(error))
    repetition = _repeat(contender, driver, plan, cold=number == 0, step=counted)
    if ready is None:
        return repetition
    return dataclasses.replace(repetition, entered=ready.conditions, left=driver.conditions(), waited_s=ready.waited_s)


def assemble(
    contender: Contender,
    device: DeviceFacts,
    plan: Plan,
    conditions: tuple[Conditions, Conditions],
    repetitions: Sequence[Repetition],
    dropped: Sequence[Dropped],
) -> Measurement:
    """The measurement of repetitions, with the conditions before the first and after the last."""
    last = repetitions[-1]
    return Measurement(
        schema=SCHEMA,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        artifact=facts_of(contender),
        device=device,
        workload=describe_workload(contender, plan),
        versions=last.versions or {},
        accelerator=last.accelerator,
        before=conditions[0],
        after=conditions[1],
        repetitions=repetitions,
        dropped=dropped,
    )


def describe_workload(contender: Contender, plan: Plan) -> Workload:
    """What every repetition of the plan does."""
    return Workload(
        prompt_tokens=plan.prompt_tokens,
        prompt_sha256=sha256_ids(prompt_of(contender, plan.prompt_tokens)),
        generate_tokens=plan.generate_tokens,
        repetitions=plan.repetitions,
        warmups=plan.warmups,
        threads=plan.threads,
    )


def _repeat(contender: Contender, driver: Driver, plan: Plan, *, cold: bool, step: Step) -> Repetition:
    """One fresh process from its start to its end."""
    step(0, "loading")
    # The tokens are sent at the end of each answer: writing between two of them would count as their gap.
    limit_s = plan.deadline_s
    loading = Loading(threads=plan.threads, hold=True, cold=cold, wait_s=limit_s, total_s=limit_s)
    opened = open_on(driver, contender, loading, plan.tokens)
    try:
        if opened.timed is not None:
            step(0, "measuring")
            repetition = _self_timed(opened, plan)
        else:
            repetition = _streamed(opened, contender, plan, step)
        opened.finish()
    finally:
        opened.source.close()
    step(plan.warmups + 1, "done")
    return repetition


def _streamed(opened: Opened, contender: Contender, plan: Plan, step: Step) -> Repetition:
    """The warm-ups, the measured request and the reference, of a source that stamps each token."""
    request = TokenRequest(ids=prompt_of(contender, plan.prompt_tokens), max_new_tokens=plan.generate_tokens)
    warmups: list[Run] = []
    for number in range(plan.warmups):
        step(number, "warming up")
        warmups.append(_run(list(opened.source.stream(request))))
    step(plan.warmups, "measuring")
    energy: Callable[[], Meter] | None = opened.energy
    if plan.meter is not None:
        energy = functools.partial(command_meter, plan.meter)
    with contextlib.nullcontext() if energy is None else energy() as meter:
        records = list(opened.source.stream(request))
    return Repetition(
        page_cache=_page_cache(opened.cached_share),
        cached_share=opened.cached_share,
        load_s=opened.load_s,
        open_s=opened.open_s,
        load_mode=opened.load_mode,
        warmups=warmups,
        run=_run(records),
        versions=dict(opened.versions),
        accelerator=opened.accelerator,
        energy_j=None if meter is None else meter.joules,
        energy_source=None if meter is None else meter.source,
        reference=_follow(opened, contender),
    )


def _follow(opened: Opened, contender: Contender) -> Followed | None:
    """Does this fast run compute what the export's engine did? Asked behind the measured request, which it leaves as it
    was."""
    reference, context = reference_of(contender), context_of(contender)
    prompt, kept = reference.get("prompt", ()), reference.get("answer", ())
    if not prompt or not kept or (context is not None and len(prompt) + len(kept) > context):
        return None
    answer = _run(list(opened.source.stream(TokenRequest(ids=prompt, max_new_tokens=len(kept))))).token_ids
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(answer, kept, strict=False))
    return Followed(tokens=len(kept), agreed=sum(1 for _ in same))


def _count_from(step: Step, first: int, done: int, doing: str) -> None:
    step(first + done, doing)


def _page_cache(cached_share: float | None) -> PageCache | None:
    if cached_share is None:
        return None
    return "cold" if cached_share <= 0.05 else "warm" if cached_share >= 0.95 else "mixed"


def _self_timed(opened: Opened, plan: Plan) -> Repetition:
    """One answer of a runner that reports the times itself. Where a process of ours is around it, that knows more."""
    assert opened.timed is not None
    if plan.warmups > 1:
        raise DeviceError(f"the device's runner warms up once at most, and --warmup is {plan.warmups}")
    answer = opened.timed(plan.prompt_tokens, plan.generate_tokens, plan.warmups == 1)
    process = answer.process
    run = Run(
        finish="length" if answer.completion_tokens == plan.generate_tokens else "eos",
        prompt_tokens=answer.prompt_tokens,
        reused_tokens=0,
        prefilled_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        prefill_s=answer.prefill_s,
        total_s=answer.last_token_s,
        token_ids_sha256=sha256_ids(answer.token_ids),
        token_ids=answer.token_ids,
        token_at_s=(),
        memory=MemoryUse() if process is None else process.memory,
        first_token_s=answer.first_token_s,
        last_token_s=answer.last_token_s,
        piece_at_s=answer.piece_at_s,
    )
    known = opened if process is None else process
    return Repetition(
        page_cache=_page_cache(known.cached_share),
        cached_share=known.cached_share,
        load_s=known.load_s,
        open_s=answer.load_s,
        load_mode=known.load_mode,
        warmups=[],
        run=run,
        versions=dict(known.versions),
        accelerator=opened.accelerator,
        energy_j=None if process is None else process.energy_j,
        energy_source=None if process is None else process.energy_source,
    )


def _run(records: Sequence[TokenRecord]) -> Run:
    """One answer, from its records."""
    done = records[-1]
    assert isinstance(done, TokensDone)
    if done.error is not None:
        raise DeviceError(f"the runtime failed in the middle of an answer: {done.error}")
    tokens = [record for record in records if isinstance(record, NewToken)]
    stamps = [token.at_s for token in tokens if token.at_s is not None]
    if len(stamps) < len(tokens):
        raise DeviceError("the device's runner reports no times of tokens; measure with the agent")
    ids, usage = [token.id for token in tokens], done.usage
    return Run(
        finish=done.finish,
        prompt_tokens=usage.prompt,
        reused_tokens=usage.reused,
        prefilled_tokens=usage.prefilled,
        completion_tokens=usage.completion,
        prefill_s=done.prefill_s,
        total_s=done.total_s,
        token_ids_sha256=sha256_ids(ids),
        token_ids=ids,
        token_at_s=stamps,
        memory=done.memory or MemoryUse(),
    )
