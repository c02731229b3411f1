"""The Python agent: `python -m runtimes.agent ARTIFACT` loads an artifact and speaks JSON lines on stdin and stdout.

docs/agent-protocol.md defines the lines, the options and the exit codes. One thread reads lines and answers those that
need no model; the main thread loads and generates. It needs one engine's library, but no tokenizer and no click.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import queue
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from export.artifact import Artifact, open_artifact
from export.errors import ArtifactError
from runtimes.agent.facts import cached_before, describe, describe_loading
from runtimes.agent.generating import done_fields, token_fields
from runtimes.agent.lines import TOO_LONG, LineReader, LineWriter
from runtimes.agent.lock import hold_lock
from runtimes.agent.scoring import ScoreRequest, open_rows, predict, scored_fields
from runtimes.agent.watch import start_watch
from runtimes.agent.wire import Code, Command, LineError, decode_command
from runtimes.engines.engine import EngineOpener, Graphics
from runtimes.errors import DeviceBusyError, RequestError, RuntimesError, UnsupportedError
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import NewToken, TokenRequest
from runtimes.registry import open_tokens
from runtimes.system.conditions import read_conditions
from runtimes.system.memory import MemorySampler
from runtimes.system.windows.stdin import binary_stdin

if TYPE_CHECKING:
    from runtimes.stock.table import StockTokens

EXIT_CANNOT_START = 2
MOST_SILENCE_S = 1e6
LAST_FORWARD_S = 5.0  # how long a forward may go on after the input has ended


class Job:
    """An accepted generate or score command whose answer is not finished."""

    def __init__(self, number: int, request: TokenRequest | ScoreRequest, *, hold: bool) -> None:
        self.number = number
        self.request = request
        self.hold = hold
        self.accepted_s = time.perf_counter()
        self.started = False
        self.cancelled = False


class Agent:
    """Serves one loaded model. `read` runs in a thread of its own, `serve` in the main one."""

    def __init__(self, writer: LineWriter, memory: MemorySampler) -> None:
        self._writer = writer
        self._memory = memory
        self._began_s = time.perf_counter()
        self._lock = threading.Lock()  # guards _job and _loop, which both threads use
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._job: Job | None = None
        self._loop: TokenLoop | StockTokens | None = None
        self._ended = threading.Event()
        self.last_line_s = time.perf_counter()
        self.line_count = 0

    def read(self, lines: LineReader) -> None:
        """Answer or pass on every line until the input ends, then make sure that the process exits."""
        for line in lines:
            self.last_line_s = time.perf_counter()
            self.line_count += 1
            try:
                if line is None:
                    raise LineError("malformed", TOO_LONG)
                self._obey(decode_command(line))
            except LineError as error:
                self._writer.error(error.number, error.code, str(error))
        self._writer.close()
        with self._lock:
            loading = self._loop is None
            if self._loop is not None:
                self._loop.cancel()
        self._jobs.put(None)
        if loading or not self._ended.wait(LAST_FORWARD_S):
            os._exit(0)  # a load or a forward cannot be interrupted

    def serve(self, loop: TokenLoop | StockTokens) -> None:
        """Run the jobs until the input ends."""
        with self._lock:
            self._loop = loop
        try:
            while (job := self._jobs.get()) is not None:
                try:
                    self._answer(job, loop)
                except Exception as bug:  # a bug of ours ends this request, not the agent
                    traceback.print_exc()
                    loop.forget()
                    self._end(job)
                    self._writer.error(job.number, "internal", f"{type(bug).__name__}: {bug}")
        finally:
            loop.close()
            self._ended.set()

    def _obey(self, command: Command) -> None:
        """Nothing here waits: a ping or a cancel behind this command must not be late."""
        if command.request is not None:
            self._accept(Job(command.number, command.request, hold=command.hold))
        elif command.verb == "cancel":
            with self._lock:
                if self._job is not None and self._job.number == command.number:
                    self._job.cancelled = True
                    if self._job.started and self._loop is not None:
                        self._loop.cancel()
        else:
            uptime_s = time.perf_counter() - self._began_s
            self._writer.write({"event": "pong", "request": command.number, "uptime_s": uptime_s})

    def _accept(self, job: Job) -> None:
        with self._lock:
            if self._job is not None:
                running = self._job.number
                raise LineError("busy", f"request {running} is running; cancel it or wait for its end", job.number)
            self._job = job
            self._jobs.put(job)

    def _answer(self, job: Job, loop: TokenLoop | StockTokens) -> None:
        try:
            if isinstance(job.request, ScoreRequest):
                if not isinstance(loop, TokenLoop):
                    raise UnsupportedError("a stock engine is only measured; score an artifact of phi-edge")
                self._score(job, job.request, loop)
            else:
                self._generate(job, job.request, loop)
        except RequestError as error:
            self._end(job)
            code: Code = "unsupported" if isinstance(error, UnsupportedError) else "request"
            self._writer.error(job.number, code, str(error))

    def _score(self, job: Job, request: ScoreRequest, loop: TokenLoop) -> None:
        with self._lock:
            rows = open_rows(loop, request)
            job.started = True
            if job.cancelled:
                loop.cancel()
        predictions = predict(rows, request)
        self._end(job)
        self._writer.write({"event": "scored", "request": job.number} | scored_fields(predictions))

    def _generate(self, job: Job, request: TokenRequest, loop: TokenLoop | StockTokens) -> None:
        waited_s = time.perf_counter() - job.accepted_s
        if request.deadline_s is not None:
            request = dataclasses.replace(request, deadline_s=request.deadline_s - waited_s)
        with self._lock:
            records = loop.stream(request)
            job.started = True
            if job.cancelled:
                loop.cancel()
        held: list[dict[str, Any]] = []
        for record in records:
            if isinstance(record, NewToken):
                token = {"event": "token", "request": job.number} | token_fields(record, waited_s)
                held.append(token) if job.hold else self._writer.write(token)
            else:
                self._writer.write(*held)
                self._end(job)
                memory = self._memory.use()
                self._writer.write({"event": "done", "request": job.number} | done_fields(record, waited_s, memory))

    def _end(self, job: Job) -> None:
        # Before its last line is written: the host may send the next request as soon as it has read that line.
        with self._lock:
            if self._job is job:
                self._job = None


def main(arguments: Sequence[str] | None = None, engine: EngineOpener | None = None) -> int:
    """Parse the options, load, write the ready line and serve until the input ends. Returns the exit code.

    With `arguments` None it reads the command line; with `engine` None it takes the one for the artifact's format.
    """
    writer = LineWriter.over_stdout()
    try:
        options = _options(arguments)
        if options.sample:
            writer.write({"event": "sample", "conditions": dataclasses.asdict(read_conditions())})
            return 0
        with MemorySampler() as memory:
            return _run(options, engine, writer, memory)
    except (ArtifactError, RuntimesError) as error:
        writer.error(None, _code(error), str(error), fatal=True)
    except Exception as bug:
        traceback.print_exc()
        writer.error(None, "internal", f"{type(bug).__name__}: {bug}", fatal=True)
    return EXIT_CANNOT_START


def _run(options: argparse.Namespace, engine: EngineOpener | None, writer: LineWriter, memory: MemorySampler) -> int:
    agent = Agent(writer, memory)
    threading.Thread(target=agent.read, args=(LineReader(binary_stdin()),), daemon=True).start()
    start_watch(options.silence_s, lambda: agent.last_line_s, lambda: agent.line_count + writer.count)
    if options.lock is not None:
        hold_lock(options.lock)
    loop, ready = _open(options, engine)
    writer.write(ready)
    agent.serve(loop)
    return 0


class _Parser(argparse.ArgumentParser):
    """A wrong command line is an error line, too."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; {' '.join(self.format_usage().split())}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m runtimes.agent", description="See docs/agent-protocol.md.")
    parser.add_argument("artifact", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--adapter", metavar="WHICH")
    parser.add_argument("--allow-cpu", action="store_true")
    parser.add_argument("--lock", type=Path, metavar="FILE")
    parser.add_argument("--silence-s", type=float, metavar="S")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--stock", metavar="ENGINE")
    parser.add_argument("--context", type=int, metavar="N")
    options = parser.parse_args(arguments)
    if (options.artifact is None) != options.sample:
        parser.error("give an artifact's folder, or --sample")
    if (options.stock is None) != (options.context is None):
        parser.error("--stock and --context belong together")
    if options.silence_s is not None and not 0 < options.silence_s <= MOST_SILENCE_S:
        parser.error(f"--silence-s is not a number of seconds above 0, at most {MOST_SILENCE_S:.0f}")
    return options


def _open(options: argparse.Namespace, engine: EngineOpener | None) -> tuple[TokenLoop | StockTokens, dict[str, Any]]:
    """The loaded model and the ready line."""
    if options.stock is not None:
        from runtimes.agent.stock import open_stock

        return open_stock(options.artifact, options.stock, options.context, options.threads, cold=options.cold)
    began_s = time.perf_counter()
    artifact: Artifact = open_artifact(options.artifact)
    files = [artifact.folder / name for name in artifact.manifest.files]
    cached_share = cached_before(files, cold=options.cold)
    graphics = Graphics(adapter=options.adapter, allow_cpu=options.allow_cpu)
    loop = open_tokens(artifact, threads=options.threads, engine=engine, graphics=graphics)
    facts = describe(artifact, options.threads) | describe_loading(files, began_s, cached_share)
    return loop, facts | {"accelerator": loop.accelerator}


def _code(error: Exception) -> Code:
    if isinstance(error, DeviceBusyError):
        return "busy"
    if isinstance(error, RequestError):
        return "request"
    return "artifact" if isinstance(error, ArtifactError) else "engine"
