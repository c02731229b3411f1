"""2,000 requests of every kind on each artifact, one after the other in one process: here, or on a device of the lab.

    python ci/soak.py ARTIFACT... [--requests 2000] [--documents] [--device NAME --lab lab.toml] [--threads N]

Random lengths, sampling, stops, cancels, sessions, guesses and JSON schemas. Each answer is compared token by token
with an uninterrupted one of the same seed; each finish must have its reason; each document is checked against its
schema; memory must not grow by more than 1 % after the first quarter. With --documents every request has a schema.

A prompt that is partly in the cache is read in other pieces, which round differently, so now and then a draw falls
otherwise. Where two answers part, the model's probabilities there must be the same but for rounding; such answers are
counted. A token that was lost, doubled or taken from another session changes them by whole nats.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, python puts ci/ there

import jsonschema_rs

from devices.drivers.table import open_device_runtime
from runtimes.api import DoneEvent, GenerateRequest, Message, TokenEvent
from runtimes.errors import UnsupportedError
from runtimes.registry import open_runtime
from runtimes.text.runtime import TextRuntime

WORDS = ["lamp", "kitchen", "turn", "off", "light", "hall", "water", "warm", "the", "is", "what", "sun", "why"]
GROWTH = 0.01
LONGEST = 600  # tokens of a prompt and its answer, and some more
LIKELIEST = 5  # ids whose probabilities are compared where two answers part
ROUNDING = 0.25  # nats


@dataclass
class Tally:
    """What the requests of one artifact gave."""

    documents: int = 0
    parted: int = 0  # answers that rounding made different
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer, and its end; None where it was cancelled."""

    tokens: list[TokenEvent]
    done: DoneEvent | None

    @property
    def text(self) -> str:
        """What a user would see."""
        return "".join(event.text for event in self.tokens) + (self.done.text if self.done else "")


def main() -> None:
    """Prints a line for each artifact. Exit 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--documents", action="store_true", help="JSON schemas alone")
    parser.add_argument("--device", help="of the lab file; left out: this process")
    parser.add_argument("--lab", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wrong = [fault for folder in options.artifacts for fault in soak(folder, options)]
    print("\n".join(wrong) or "nothing was wrong")
    raise SystemExit(1 if wrong else 0)


def soak(folder: Path, options: argparse.Namespace) -> list[str]:
    """What was wrong, a line each."""
    chance, tally, began_s, warm_bytes = random.Random(options.seed), Tally(), time.monotonic(), 0
    with opened(folder, options) as runtime:
        # An engine may take the cache's pages from the system when a sequence first reaches them.
        ids = [1] * min(LONGEST, runtime.manifest.context_tokens - 1)
        read(runtime, GenerateRequest(token_ids=ids, max_new_tokens=1), None)
        guesses = can_guess(runtime)
        for number in range(options.requests):
            if number == options.requests // 4:
                warm_bytes = used_bytes(runtime, options.device)
            request = any_request(chance, documents=options.documents, guesses=guesses)
            fault = (wrong_document if request.json_schema else wrong_answer)(runtime, request, chance, tally)
            if fault is not None:
                tally.faults.append(f"{folder}, request {number}: {fault}")
        grown = used_bytes(runtime, options.device) / warm_bytes - 1
    if grown > GROWTH:
        tally.faults.append(f"{folder}: memory grew by {grown:.1%} after the first quarter; allowed: {GROWTH:.0%}")
    print(
        f"{folder}: {options.requests} requests, {tally.documents} of them documents, {len(tally.faults)} wrong, "
        f"{tally.parted} parted by rounding, memory {warm_bytes / 1e6:.0f} MB {grown:+.2%}, "
        f"{time.monotonic() - began_s:.0f} s",
        flush=True,
    )
    return tally.faults


def opened(folder: Path, options: argparse.Namespace) -> TextRuntime:
    """In this process, or on the device."""
    if options.device is None:
        return open_runtime(folder, threads=options.threads)
    return open_device_runtime(folder, options.device, lab=options.lab, threads=options.threads)


def can_guess(runtime: TextRuntime) -> bool:
    """Whether the engine checks several tokens at once."""
    try:
        runtime.generate(GenerateRequest(prompt="a", speculate=True)).close()
    except UnsupportedError:
        return False
    return True


def any_request(chance: random.Random, *, documents: bool, guesses: bool) -> GenerateRequest:
    """One of a random kind, or with a schema; with guesses now and then."""
    text = " ".join(chance.choices(WORDS, k=chance.randint(1, 40)))
    request = GenerateRequest(
        messages=[Message("user", text)],
        max_new_tokens=chance.randint(1, 48),
        temperature=chance.choice([0.0, 0.7, 2.0]),
        top_p=chance.choice([None, 0.9]),
        repetition_penalty=chance.choice([1.0, 1.2]),
        seed=chance.getrandbits(64),
        session=chance.choice([None, "a", "b"]),
        stop=chance.choice([(), (), ("a",), (" the",)]),
        speculate=guesses and chance.random() < 0.5,
    )
    if documents or chance.random() < 0.3:
        return dataclasses.replace(request, json_schema=any_schema(chance, 2), max_new_tokens=400, stop=())
    return request


def any_schema(chance: random.Random, depth: int) -> dict[str, Any]:
    """A schema whose documents end."""
    kind = chance.randrange(6 if depth else 4)
    if kind == 0:
        return {"type": "integer", "minimum": 0, "maximum": chance.randint(1, 10**6)}
    if kind == 1:
        return {"enum": chance.sample(WORDS, 3)}
    if kind == 2:
        return {"type": "boolean"}
    if kind == 3:
        return {"type": "string", "maxLength": chance.randint(1, 12)}
    if kind == 4:
        items = {"items": any_schema(chance, depth - 1), "minItems": chance.randint(0, 2), "maxItems": 3}
        return {"type": "array", **items}
    names = chance.sample(WORDS, chance.randint(1, 3))
    properties = {name: any_schema(chance, depth - 1) for name in names}
    return {"type": "object", "properties": properties, "required": names[:1], "additionalProperties": False}


def wrong_document(runtime: TextRuntime, request: GenerateRequest, chance: random.Random, tally: Tally) -> str | None:
    """What is wrong with the document, if anything."""
    assert request.json_schema is not None
    tally.documents += 1
    answer = read(runtime, request, None)
    if answer.done is None or answer.done.finish != "eos":
        return f"finish {answer.done and answer.done.finish}: {answer.text!r:.100}"
    try:
        jsonschema_rs.validate(dict(request.json_schema), json.loads(answer.text))
    except (ValueError, jsonschema_rs.ValidationError) as error:
        return f"{answer.text!r:.100} does not fit {request.json_schema}: {error}"
    return None


def wrong_answer(runtime: TextRuntime, request: GenerateRequest, chance: random.Random, tally: Tally) -> str | None:
    """What is wrong with an answer, some of which are cancelled, beside an uninterrupted one."""
    request = dataclasses.replace(request, logprobs=LIKELIEST)
    answer = read(runtime, request, chance.choice([None, None, chance.randint(0, 20)]))
    whole = read(runtime, dataclasses.replace(request, session=None), None)
    for each in (answer, whole):
        if each.done is not None and not has_reason(each.done, each.text, request):
            return f"finish {each.done.finish} after {each.done.usage.completion} tokens: {each.text!r}"
    for ours, theirs in zip(answer.tokens, whole.tokens, strict=False):
        if ours.id != theirs.id:
            tally.parted += 1
            return None if only_rounded(ours, theirs) else f"{answer.text!r}, alone {whole.text!r}: {ours}, {theirs}"
    if answer.done is None:
        return (
            None if len(answer.tokens) <= len(whole.tokens) else f"cancelled at {answer.text!r}, whole {whole.text!r}"
        )
    ended = [(each.text, each.done and (each.done.finish, each.done.stop_string)) for each in (answer, whole)]
    return None if ended[0] == ended[1] else f"{ended[0]}, alone {ended[1]}"


def only_rounded(ours: TokenEvent, theirs: TokenEvent) -> bool:
    """Whether the model thought the same before two different tokens were drawn."""
    first, second = ({each.id: each.logprob for each in event.top_logprobs} for event in (ours, theirs))
    common = first.keys() & second.keys()
    return len(common) >= LIKELIEST - 2 and all(abs(first[id] - second[id]) < ROUNDING for id in common)


def has_reason(done: DoneEvent, text: str, request: GenerateRequest) -> bool:
    """Whether an answer ended where it says: of its length, at a stop string, at the model's own end."""
    if done.finish == "length":
        return done.usage.completion == request.max_new_tokens
    if done.finish == "stop":
        return done.stop_string in request.stop and not any(stop in text for stop in request.stop)
    return done.finish == "eos" and done.usage.completion < request.max_new_tokens


def read(runtime: TextRuntime, request: GenerateRequest, cancel_after: int | None) -> Answer:
    """The whole answer, or what came before it was cancelled."""
    tokens: list[TokenEvent] = []
    events = runtime.generate(request)
    for count, event in enumerate(events):
        if count == cancel_after:
            events.close()
            break
        if isinstance(event, DoneEvent):
            assert event.usage.completion == count, "a token was lost or doubled"
            return Answer(tokens, event)
        tokens.append(event)
    assert cancel_after is not None, "the stream has no done event"
    return Answer(tokens, None)


def used_bytes(runtime: TextRuntime, device: str | None) -> int:
    """Of the process that has the model: of this one now, of a device's agent at most so far."""
    if device is None:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    done = read(runtime, GenerateRequest(prompt="a", max_new_tokens=1), None).done
    assert done is not None and done.memory is not None and done.memory.peak_bytes is not None
    return done.memory.peak_bytes


if __name__ == "__main__":
    main()
