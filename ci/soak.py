"""2,000 requests of every kind on each artifact, one after the other in one process: here, or on a device of the lab.

    python ci/soak.py ARTIFACT... [--requests 2000] [--documents] [--device NAME --lab lab.toml] [--threads N]

Random lengths, sampling, stops, cancels, sessions, guesses and JSON schemas. Each answer is compared with an
uninterrupted one of the same seed; each finish must have its reason; each document is checked against its schema;
memory must not grow by more than 1 % after the first quarter. With --documents every request has a schema.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, python puts ci/ there

import jsonschema_rs

from devices.drivers.table import open_device_runtime
from runtimes.api import DoneEvent, GenerateRequest, Message
from runtimes.errors import UnsupportedError
from runtimes.registry import open_runtime
from runtimes.text.runtime import TextRuntime

WORDS = ["lamp", "kitchen", "turn", "off", "light", "hall", "water", "warm", "the", "is", "what", "sun", "why"]
GROWTH = 0.01


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
    chance, faults, documents, began_s = random.Random(options.seed), [], 0, time.monotonic()
    warm_bytes = 0
    with opened(folder, options) as runtime:
        guesses = can_guess(runtime)
        for number in range(options.requests):
            if number == options.requests // 4:
                warm_bytes = used_bytes(runtime, options.device)
            request = any_request(chance, documents=options.documents, guesses=guesses)
            fault = wrong_document(runtime, request) if request.json_schema else wrong_answer(runtime, request, chance)
            documents += request.json_schema is not None
            if fault is not None:
                faults.append(f"{folder}, request {number}: {fault}")
        grown = used_bytes(runtime, options.device) / warm_bytes - 1
    if grown > GROWTH:
        faults.append(f"{folder}: memory grew by {grown:.1%} after the first quarter; allowed: {GROWTH:.0%}")
    print(
        f"{folder}: {options.requests} requests, {documents} of them documents, {len(faults)} wrong, memory "
        f"{warm_bytes / 1e6:.0f} MB {grown:+.2%}, {time.monotonic() - began_s:.0f} s",
        flush=True,
    )
    return faults


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


def wrong_document(runtime: TextRuntime, request: GenerateRequest) -> str | None:
    """What is wrong with the document, if anything."""
    assert request.json_schema is not None
    text, done = read(runtime, request, None)
    if done is None or done.finish != "eos":
        return f"finish {done and done.finish}: {text!r:.100}"
    try:
        jsonschema_rs.validate(dict(request.json_schema), json.loads(text))
    except (ValueError, jsonschema_rs.ValidationError) as error:
        return f"{text!r:.100} does not fit {request.json_schema}: {error}"
    return None


def wrong_answer(runtime: TextRuntime, request: GenerateRequest, chance: random.Random) -> str | None:
    """What is wrong with an answer, some of which are cancelled, beside an uninterrupted one."""
    cancel_after = chance.choice([None, None, chance.randint(0, 20)])
    text, done = read(runtime, request, cancel_after)
    whole, end = read(runtime, dataclasses.replace(request, session=None), None)
    assert end is not None
    if not has_reason(end, whole, request):
        return f"finish {end.finish} ({end.stop_string!r}) of {end.usage.completion} tokens: {whole!r}"
    if done is None:
        return None if whole.startswith(text) else f"cancelled at {text!r}, whole {whole!r}"
    same = (text, done.finish, done.stop_string) == (whole, end.finish, end.stop_string)
    return None if same else f"{text!r} ({done.finish}), alone {whole!r} ({end.finish})"


def has_reason(done: DoneEvent, text: str, request: GenerateRequest) -> bool:
    """Whether an answer ended where it says: of its length, at a stop string, at the model's own end."""
    if done.finish == "length":
        return done.usage.completion == request.max_new_tokens
    if done.finish == "stop":
        return done.stop_string in request.stop and not any(stop in text for stop in request.stop)
    return done.finish == "eos" and done.usage.completion < request.max_new_tokens


def read(runtime: TextRuntime, request: GenerateRequest, cancel_after: int | None) -> tuple[str, DoneEvent | None]:
    """The text and the last event; None where it was cancelled."""
    text, events = "", runtime.generate(request)
    for count, event in enumerate(events):
        if count == cancel_after:
            events.close()
            return text, None
        text += event.text
        if isinstance(event, DoneEvent):
            assert event.usage.completion == count, "a token was lost or doubled"
            return text, event
    raise AssertionError("the stream has no done event")


def used_bytes(runtime: TextRuntime, device: str | None) -> int:
    """Of the process that has the model: of this one now, of a device's agent at most so far."""
    if device is None:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    _, done = read(runtime, GenerateRequest(prompt="a", max_new_tokens=1), None)
    assert done is not None and done.memory is not None and done.memory.peak_bytes is not None
    return done.memory.peak_bytes


if __name__ == "__main__":
    main()
