"""An agent that misbehaves: `python tests/fakes/evil_agent.py MANNER ARTIFACT ...`, for lab.toml's `agent`.

MANNER is JSON: {"ready": {...}, "token": {...}, "done": {...}} changes fields of those lines, "logprob" is that of
every token of a text, and "does" names a behaviour: "endless" (tokens without an end), "neverending" (a line without
an end), "silent" (no done line), "backwards" (times that fall), "other" (answers another request), "error" (the text
in "says", "times" over), "log" (fills stderr).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def evil_agent(**manner: Any) -> list[str]:
    """The command, before the artifact. -P: this folder is no import path."""
    return [sys.executable, "-P", __file__, json.dumps(manner)]


def say(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event} | fields) + "\n")
    sys.stdout.flush()


def answer(manner: dict[str, Any], request: dict[str, Any]) -> None:
    """One answer, as the manner has it."""
    does, number, wanted = manner.get("does"), request["request"], request["max_new_tokens"]
    if does == "error":
        say("error", request=number, code="request", message=manner["says"] * manner.get("times", 1), fatal=False)
        return
    if does == "neverending":
        while True:
            sys.stdout.write("x" * 1_000_000)
    count = 0
    while count < wanted or does == "endless":
        at_s = 1.0 / (1 + count) if does == "backwards" else 0.1 + 0.01 * count
        say("token", **({"request": number + (does == "other"), "id": 65, "at_s": at_s} | manner.get("token", {})))
        count += 1
    if does == "silent":
        return
    prompt = len(request["ids"])
    usage = {"prompt": prompt, "reused": 0, "prefilled": prompt, "completion": count}
    done = {"request": number, "finish": "length", "usage": usage, "prefill_s": 0.1, "total_s": 0.1 + 0.01 * count}
    say("done", **(done | manner.get("done", {})))


def main() -> None:
    manner = json.loads(sys.argv[1])
    manifest = json.loads((Path(sys.argv[2]) / "manifest.json").read_text())
    if manner.get("does") == "log":
        for _ in range(200):
            sys.stderr.write("a line of a log \x1b[31m\n" * 10_000)
    ready = {
        "protocol": 1,
        "agent": "evil",
        "context_tokens": manifest["context_tokens"],
        "vocab_size": manifest["model"]["vocab_size"],
        "capabilities": ["temperature", "top_k", "top_p", "session", "deadline_s", "hold", "cancel", "score"],
        "load_s": 0.5,
        "open_s": 0.25,
    }
    say("ready", **(ready | manner.get("ready", {})))
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "generate":
            answer(manner, command)
        elif command["do"] == "score":
            wanted = command["wanted"]
            logs = [[manner.get("logprob", -1.0)] * len(ids) for ids in wanted]
            say("scored", request=command["request"], log_probabilities=logs, top=[0] * len(wanted))
        elif command["do"] == "ping":
            say("pong", request=command["request"], uptime_s=time.perf_counter())


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # it was stopped
        main()
    os._exit(0)
