"""Which measurements are invalid, and which are doubtful, with the reasons. It reads a Measurement and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from devices.measure.measurement import Measurement, Repetition, Run, Workload, sha256_ids
from devices.measure.readiness import BUSY_SHARE
from devices.measure.throttling import during
from runtimes.engines.engine import ACCELERATED
from runtimes.system.boot import restarted


def problems(measurement: Measurement) -> list[str]:
    """Why the measurement is invalid, one line each; empty when it is valid."""
    repetitions = measurement.repetitions
    found = [
        f"repetition {number}: {problem}"
        for number, repetition in enumerate(repetitions, start=1)
        for problem in _repetition(repetition, measurement.workload, counts=measurement.artifact.service is None)
    ]
    if len(repetitions) != measurement.workload.repetitions:
        found.append(f"{len(repetitions)} repetitions of {measurement.workload.repetitions}")
    facts = measurement.artifact
    if (facts.artifact_bytes or 0) < 0 or (facts.weights_bytes or 0) < 0:
        found.append(f"an artifact of {facts.artifact_bytes} bytes with {facts.weights_bytes} bytes of weights")
    first = repetitions[0].run.token_ids_sha256
    if differing := [str(n) for n, each in enumerate(repetitions, start=1) if each.run.token_ids_sha256 != first]:
        found.append(
            f"nondeterministic: greedy token ids of repetition {', '.join(differing)} differ from repetition 1's"
        )
    watched = all(repetition.entered is not None for repetition in repetitions)  # each by itself: see _conditions
    if not watched and restarted(measurement.before.boot_id, measurement.after.boot_id):
        found.append("the device was restarted in the middle (its boot id changed)")
    return found + _changed_versions(repetitions) + _dropped(measurement)


def doubts(measurement: Measurement) -> list[str]:
    """Why its times may be worse than what the device can do, one line each; it is still valid."""
    found, before, after = [], measurement.before, measurement.after
    if before.busy_share is not None and before.busy_share > BUSY_SHARE:
        found.append(
            f"the device was busy before it began ({before.busy_share:.0%} of its cores' time); close other programs"
        )
    if failures := measurement.failures:
        found.append(f"{len(failures)} tries failed and were made again; the last one: {failures[-1]}")
    runs = [repetition.run for repetition in measurement.repetitions]
    if any(run.piece_at_s and len(run.piece_at_s) < run.completion_tokens for run in runs):
        share = sum(run.completion_tokens for run in runs) / max(1, sum(len(run.piece_at_s) for run in runs))
        found.append(f"its stream brings {share:.1f} tokens a piece; inter-token times are those between pieces")
    asked = [each.reference for each in measurement.repetitions if each.reference is not None]
    if other := [each for each in asked if each.agreed < each.tokens]:
        found.append(
            f"{len(other)} of {len(asked)} repetitions answer the artifact's reference otherwise than its export did, "
            f"from token {min(each.agreed for each in other) + 1} of {other[0].tokens} on: a near tie that this "
            "processor rounds otherwise, or a wrong computation; `phi-edge check --against` tells"
        )
    if measurement.artifact.provider in ACCELERATED and measurement.accelerator is None:
        found.append("the CPU ran an artifact that was exported for a graphics adapter; these are not its times")
    watched = all(repetition.entered is not None for repetition in measurement.repetitions)  # then it is invalid
    if not watched and before.throttled is not None and after.throttled is not None:
        found += [f"the board's firmware slowed it down: {why}" for why in during(before.throttled, after.throttled)]
    return found


def _repetition(repetition: Repetition, workload: Workload, *, counts: bool) -> list[str]:
    """`counts`: the prompt had a number of ids. A service counts a text by a tokenizer of its own."""
    found = []
    for what, run in [*(("warm-up", warmup) for warmup in repetition.warmups), ("measured request", repetition.run)]:
        if run.finish != "length":
            found.append(f"{what} finished with {run.finish!r}, not at its length")
        # Ids that were read from an answer's text may be more or fewer.
        counted = [run.completion_tokens, *([len(run.token_ids)] if run.first_token_s is None else [])]
        if set(counted) != {workload.generate_tokens}:
            found.append(f"{what} generated {run.completion_tokens} of {workload.generate_tokens} tokens")
        if counts and {run.prompt_tokens, run.prefilled_tokens} != {workload.prompt_tokens}:
            found.append(f"{what} prefilled {run.prefilled_tokens} of {workload.prompt_tokens} prompt tokens")
        if run.token_ids_sha256 != sha256_ids(run.token_ids):
            found.append(f"{what}: its token ids do not match their hash")
        found += [f"{what}: {problem}" for problem in _impossible(run)]
    if repetition.energy_j is not None and repetition.energy_j <= 0:
        found.append(f"it used {repetition.energy_j:g} J")
    if repetition.load_s is not None and repetition.load_s <= 0:
        found.append(f"it was loaded in {repetition.load_s:g} s")
    found += _conditions(repetition)
    swap_bytes = repetition.run.memory.swap_bytes
    if swap_bytes:
        found.append(f"{swap_bytes} bytes of the process were swapped out, so its times include swapping")
    return found


def _conditions(repetition: Repetition) -> list[str]:
    """What happened to the device during a repetition, where it was looked at before and after."""
    before, after = repetition.entered, repetition.left
    if before is None or after is None:
        return []
    found = []
    if restarted(before.boot_id, after.boot_id):
        found.append("the device was restarted in the middle (its boot id changed)")
    if before.throttled is not None and after.throttled is not None:
        found += [f"its firmware slowed it down: {why}" for why in during(before.throttled, after.throttled)]
    if (after.thermal_status or 0) > (before.thermal_status or 0):
        found.append(
            f"it throttled: Android's thermal status rose from {before.thermal_status} to {after.thermal_status}"
        )
    return found


def _changed_versions(repetitions: Sequence[Repetition]) -> list[str]:
    """An engine that was updated in the middle measured two things."""
    known = [(number, each.versions) for number, each in enumerate(repetitions, start=1) if each.versions is not None]
    return [
        f"repetition {number} had {name} {versions.get(name)}, and repetition {known[0][0]} {known[0][1].get(name)}"
        for number, versions in known[1:]
        for name in sorted({*versions, *known[0][1]})
        if versions.get(name) != known[0][1].get(name)
    ]


def _dropped(measurement: Measurement) -> list[str]:
    """The repetitions that were made are those for which it happened to be cool: no verdict may rest on them."""
    dropped = measurement.dropped
    if not dropped:
        return []
    tries = len(dropped) + len(measurement.repetitions)
    return [
        f"{len(dropped)} of {tries} tries were dropped, because the device was not ready in time; the last time: "
        f"{dropped[-1].reason}"
    ]


def _impossible(run: Run) -> list[str]:
    """Times and sizes that no run has: a runner that divides by them reports what it likes."""
    found = []
    stamps = (
        run.token_at_s or run.piece_at_s or [time for time in (run.first_token_s, run.last_token_s) if time is not None]
    )
    if stamps and stamps[0] <= 0:
        found.append(f"its first token came after {stamps[0]:g} s")
    if any(after < before for before, after in itertools.pairwise(stamps)):
        found.append("its clock ran backwards")
    if run.prefill_s is not None and run.prefill_s <= 0:
        found.append(f"its prompt took {run.prefill_s:g} s")
    if run.total_s is not None and stamps and run.total_s < stamps[-1]:
        found.append("it ended before its last token")
    for name, value in dataclasses.asdict(run.memory).items():
        if value is not None and (value < 0 or (name == "peak_bytes" and value == 0)):
            found.append(f"its memory has {name} {value}")
    return found
