"""The Python agent: `python -m runtimes.agent ARTIFACT` holds a loaded artifact and speaks JSON lines on stdin/stdout.

The protocol, the options and the exit codes are docs/agent-protocol.md. One thread reads and answers what needs no
model, the main thread loads and generates. It needs the light engine's extra alone: no tokenizer, no click.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from export.artifact import Artifact, open_artifact
from export.errors import ArtifactError
from runtimes.agent.facts import age_s, boot_id, describe, load_mode, weights
from runtimes.agent.lines import MALFORMED_TAIL, LineReader, Voice
from runtimes.agent.lock import hold_lock
from runtimes.agent.wire import Code, LineError, Order, decode_order
from runtimes.api import Usage
from runtimes.engines.engine import EngineOpener, Graphics
from runtimes.errors import DeviceBusyError, RequestError, RuntimesError, UnsupportedError
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import NewToken, TokensDone
from runtimes.registry import open_tokens
from runtimes.system import pagecache
from runtimes.system.conditions import read_conditions
from runtimes.system.memory import MemorySampler, read_memory
from runtimes.system.windows_stdin import binary_stdin

EXIT_CANNOT_START, EXIT_SILENCE = 2, 3
LAST_CHUNK_S = 5.0  # for a forward that runs when the input ends


class Job:
    """A generate or forget that was read and is not answered to its end."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.read_s = time.perf_counter()
        self.started = False
        self.cancelled = False


class Agent:
    """Serves one loaded model. `read` runs in a thread of its own, `serve` in the main one."""

    def __init__(self, voice: Voice, memory: MemorySampler) -> None:
        self._voice = voice
        self._memory = memory
        self._began_s = time.perf_counter()
        self._lock = threading.Lock()  # of what both threads touch: the job and the loop
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._job: Job | None = None
        self._loop: TokenLoop | None = None
        self._ended = threading.Event()
        self.heard_s = time.perf_counter()

    def read(self, lines: LineReader) -> None:
        """Answer or pass on every line until the input ends; then see to it that the process does."""
        for line in lines:
            self.heard_s = time.perf_counter()
            try:
                if line is None:
                    raise LineError("malformed", MALFORMED_TAIL)
                self._obey(decode_order(line))
            except LineError as error:
                self._voice.error(error.request, error.code, str(error))
        self._voice.fall_silent()
        with self._lock:
            loading = self._loop is None
            if self._loop is not None:
                self._loop.cancel()
        self._jobs.put(None)
        if loading or not self._ended.wait(LAST_CHUNK_S):
            os._exit(0)  # an engine in the middle of its work cannot be interrupted

    def serve(self, loop: TokenLoop) -> None:
        """Do the jobs until the input ends."""
        with self._lock:
            self._loop = loop
        try:
            while (job := self._jobs.get()) is not None:
                try:
                    self._forget(job, loop) if job.order.generate is None else self._generate(job, loop)
                except Exception as bug:  # the one barrier: our bug ends a request, told as such, and not the device
                    traceback.print_exc()
                    loop.forget()
                    self._end(job)
                    self._voice.error(job.order.request, "internal", f"{type(bug).__name__}: {bug}")
        finally:
            loop.close()
            self._ended.set()

    def _obey(self, order: Order) -> None:
        if order.do in ("generate", "forget"):
            with self._lock:
                if self._job is not None:
                    running = self._job.order.request
                    raise LineError(
                        "busy", f"request {running} is running; cancel it or wait for its end", order.request
                    )
                self._job = Job(order)
                self._jobs.put(self._job)
        elif order.do == "cancel":
            with self._lock:
                if self._job is not None and self._job.order.request == order.request:
                    self._job.cancelled = True
                    if self._job.started and self._loop is not None:
                        self._loop.cancel()
        elif order.do == "sample":
            self._voice.say(sample_line(order.request, time.perf_counter() - self._began_s, with_memory=True))
        else:
            self._voice.say(
                {"event": "pong", "request": order.request, "uptime_s": time.perf_counter() - self._began_s}
            )

    def _forget(self, job: Job, loop: TokenLoop) -> None:
        loop.forget()
        self._end(job)
        self._voice.say({"event": "forgotten", "request": job.order.request})

    def _generate(self, job: Job, loop: TokenLoop) -> None:
        request, number = job.order.generate, job.order.request
        assert request is not None
        waited_s = time.perf_counter() - job.read_s
        if request.deadline_s is not None:
            request = dataclasses.replace(request, deadline_s=request.deadline_s - waited_s)
        try:
            with self._lock:
                records = loop.stream(request)
                job.started = True
                if job.cancelled:
                    loop.cancel()
            held: list[dict[str, Any]] = []
            for record in records:
                if isinstance(record, NewToken):
                    assert record.at_s is not None  # a loop stamps
                    token = {"event": "token", "request": number, "id": record.id, "at_s": record.at_s + waited_s}
                    held.append(token) if job.order.hold else self._voice.say(token)
                else:
                    self._voice.say(*held)
                    self._end(job)
                    self._voice.say(self._done(number, record, waited_s))
        except RequestError as error:
            self._end(job)
            code: Code = "unsupported" if isinstance(error, UnsupportedError) else "request"
            self._voice.error(number, code, str(error))

    def _end(self, job: Job) -> None:
        # Before its last line is written: the host may send the next request as soon as it has read that.
        with self._lock:
            if self._job is job:
                self._job = None

    def _done(self, number: int, done: TokensDone, waited_s: float) -> dict[str, Any]:
        used = self._memory.use()  # since the process began: loading is often the peak
        return {
            "event": "done",
            "request": number,
            "finish": done.finish,
            "stop_id": done.stop_id,
            "usage": usage_fields(done.usage),
            "prefill_s": done.prefill_s,
            "total_s": None if done.total_s is None else done.total_s + waited_s,
            "memory": dataclasses.asdict(used) if used else None,
            "error": done.error,
        }


def usage_fields(usage: Usage) -> dict[str, int]:
    """The usage object of a done line."""
    return dataclasses.asdict(usage)


def sample_line(request: int | None, uptime_s: float, *, with_memory: bool) -> dict[str, Any]:
    """A sample event, now."""
    memory = read_memory() if with_memory else None
    return {
        "event": "sample",
        "request": request,
        "uptime_s": uptime_s,
        "memory": dataclasses.asdict(memory) if memory else None,
        "conditions": dataclasses.asdict(read_conditions()),
    }


def main() -> int:
    """Parse the options, load, say so, serve until the input ends. Returns the exit code."""
    options = _options()
    voice = Voice.over_stdout()
    if options.sample:
        voice.say(sample_line(None, age_s() or 0.0, with_memory=False))
        return 0
    with MemorySampler() as memory:
        agent = Agent(voice, memory)
        threading.Thread(target=agent.read, args=(LineReader(binary_stdin()),), daemon=True).start()
        if options.silence_s is not None:
            threading.Thread(target=_watch, args=(agent, options.silence_s), daemon=True).start()
        try:
            if options.lock is not None:
                hold_lock(options.lock)
            began_s = time.perf_counter()
            artifact = open_artifact(options.artifact)
            if options.cold:
                pagecache.drop([artifact.folder / name for name in artifact.manifest.files])
            share = pagecache.cached_share(weights(artifact))
            graphics = Graphics(adapter=options.adapter, allow_cpu=options.allow_cpu)
            loop = open_tokens(artifact, threads=options.threads, engine=_engine(options), graphics=graphics)
        except (ArtifactError, RuntimesError) as error:
            voice.error(None, _code(error), str(error), fatal=True)
            return EXIT_CANNOT_START
        ready = _ready(artifact, options.threads, time.perf_counter() - began_s, share)
        voice.say(ready | {"accelerator": loop.accelerator})
        agent.serve(loop)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runtimes.agent", description="See docs/agent-protocol.md.")
    parser.add_argument("artifact", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--adapter", metavar="WHICH")
    parser.add_argument("--allow-cpu", action="store_true")
    parser.add_argument("--lock", type=Path, metavar="FILE")
    parser.add_argument("--silence-s", type=float, metavar="S")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--sample", action="store_true")
    parser.add_argument(
        "--fake-forward-s", type=float, metavar="S", help="the shipped fake engine, this slow: for tests"
    )
    options = parser.parse_args()
    if (options.artifact is None) != options.sample:
        parser.error("give an artifact's folder, or --sample")
    return options


def _engine(options: argparse.Namespace) -> EngineOpener | None:
    if options.fake_forward_s is None:
        return None
    from runtimes.engines.fake import fake_opener

    return fake_opener(forward_s=options.fake_forward_s)


def _ready(artifact: Artifact, threads: int | None, open_s: float, share: float | None) -> dict[str, Any]:
    return describe(artifact, threads) | {
        "boot_id": boot_id(),
        "load_s": age_s(),
        "open_s": open_s,
        "load_mode": load_mode(artifact),
        "cached_share": share,
    }


def _code(error: Exception) -> Code:
    if isinstance(error, DeviceBusyError):
        return "busy"
    if isinstance(error, RequestError):
        return "request"
    return "artifact" if isinstance(error, ArtifactError) else "engine"


def _watch(agent: Agent, silence_s: float) -> None:
    """End the process when the host has been silent for too long: a cut wire may never tell."""
    while (left_s := agent.heard_s + silence_s - time.perf_counter()) > 0:
        time.sleep(left_s)
    sys.stderr.write(f"no line came in for {silence_s:.0f} s: the host is gone\n")
    sys.stderr.flush()
    os._exit(EXIT_SILENCE)
