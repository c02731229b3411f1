"""ExecuTorch's official runner, `llama_main`, as a TokenSource. One process for each request; greedy only.

It takes and prints text, so ids are checked on the way in (the prompt's text must be these ids) and recovered on the
way out (the answer's text is tokenised, and must have as many tokens as the runner counted). What it cannot do is
refused: sampling with our seeds, other stop ids than the program's own, sessions, prompts beyond long rope's switch,
where its context ends. Its tokens' at_s is None: what `bench` reads is the runner's own account of the whole (`time`).
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

from devices.transports.host import Host, LineProcess
from devices.transports.pipes import MOST_OUTPUT_BYTES
from devices.transports.self_timed import SelfTimed, spelt_ids
from devices.transports.texts import Texts
from export.artifact import Artifact
from export.strict import parse_json
from runtimes.api import Finish, Usage
from runtimes.errors import RequestError, TransportError, UnsupportedError
from runtimes.loop.tokens import NewToken, TokenRecord, TokenRequest, TokensDone, check_request

OBSERVER = b"PyTorchObserver "
MOST_TOKENS = 1 << 24


def open_llama_main(
    host: Host,
    start: Sequence[str],
    artifact: Artifact,
    folder: str,
    threads: int | None,
    deadline_s: float,
    diagnose: Callable[[], str | None] = lambda: None,
) -> LlamaMain:
    """`start` is the command that starts the program; `folder` is the artifact's on the device. `deadline_s` ends a
    request that takes longer. `diagnose` says why the device is gone, if it is. Loads nothing yet: the runner loads for
    each request. Raises EngineError for a tokenizer that cannot be loaded."""
    return LlamaMain(
        host, start, artifact, folder, Texts(artifact.path("tokenizer.json")), threads, deadline_s, diagnose
    )


class LlamaMain:
    """See TokenSource. Tokens come together at the end: the runner's pieces have no ids."""

    def __init__(
        self,
        host: Host,
        start: Sequence[str],
        artifact: Artifact,
        folder: str,
        texts: Texts,
        threads: int | None,
        deadline_s: float,
        diagnose: Callable[[], str | None],
    ) -> None:
        (program,) = (name for name in artifact.manifest.files if name.endswith(".pte"))
        self._host = host
        self._command = [*start, f"--model_path={folder}/{program}", f"--tokenizer_path={folder}/tokenizer.json"]
        self._command += ["--temperature=0", *([] if threads is None else [f"--cpu_threads={threads}"])]
        self._folder = folder
        self._manifest = artifact.manifest
        # It cannot prefill again with the long factors: the program ends its context at the switch.
        self._context_tokens = artifact.manifest.rope.switch_tokens or artifact.manifest.context_tokens
        self._texts = texts
        self._deadline_s = deadline_s
        self._diagnose = diagnose
        self._running = threading.Lock()
        self._process: LineProcess | None = None
        self._cut: Finish | None = None  # why the process was ended by us

    def stream(self, request: TokenRequest) -> Generator[TokenRecord, None, None]:
        """See TokenSource.stream."""
        check_request(request, self._manifest.context_tokens, self._manifest.model.vocab_size)
        self._refuse(request)
        text = self._text(request.ids)
        self._cut = None
        return self._stream(request, text)

    def time(self, prompt_tokens: int, new_tokens: int, warm_up: bool) -> SelfTimed:
        """Answer a prompt of ordinary words and go on past stop ids. Raises TransportError, UnsupportedError."""
        ids = spelt_ids(self._texts, self._manifest.tokens, prompt_tokens)
        request = TokenRequest(ids=ids, max_new_tokens=new_tokens)
        check_request(request, self._manifest.context_tokens, self._manifest.model.vocab_size)
        self._refuse(request)
        text = self._text(ids)
        self._cut = None
        output = self._run(request, text, *(["--warmup"] if warm_up else []))
        if output is None:
            raise TransportError(f"llama_main did not answer within {self._deadline_s:g} s", command=self._command)
        answer, observed = output
        return SelfTimed(
            prompt_tokens=observed["prompt_tokens"],
            completion_tokens=observed["generated_tokens"] + 1,  # the runner does not count the first
            token_ids=self._texts.encode(text + answer)[prompt_tokens:],
            load_s=_seconds(observed, "model_load_start_ms", "model_load_end_ms"),
            prefill_s=_seconds(observed, "inference_start_ms", "prompt_eval_end_ms"),  # its tokenising is in it
            first_token_s=_seconds(observed, "inference_start_ms", "first_token_ms"),
            last_token_s=_seconds(observed, "inference_start_ms", "inference_end_ms"),
        )

    def cancel(self) -> None:
        """Ends the process: the runner has no other way."""
        self._end("cancelled")

    def close(self) -> None:
        """See TokenSource.close."""
        self._end("cancelled")

    def _refuse(self, request: TokenRequest) -> None:
        if len(request.ids) >= self._context_tokens:
            raise UnsupportedError(
                f"the prompt has {len(request.ids)} tokens; llama_main ends at {self._context_tokens}, where long rope "
                "switches its factors; shorten the prompt, or use the agent"
            )
        if request.sampling.temperature > 0 and request.sampling.top_k != 1:
            raise UnsupportedError(
                "llama_main draws with a seed of its own, without top_k and top_p; use temperature 0"
            )
        sampling = request.sampling
        penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        if penalties != (1, 0, 0) or request.logprobs is not None or request.grammar is not None:
            raise UnsupportedError(
                "llama_main has no penalties, log-probabilities or grammars; leave repetition_penalty, "
                "presence_penalty, frequency_penalty, logprobs, json_schema, regex and lark out, or use the agent"
            )
        if request.adapter is not None:
            raise UnsupportedError("llama_main runs a program's own weights; leave adapter out")
        if request.speculate:
            raise UnsupportedError("llama_main computes one token after the other; leave speculate out")
        if request.session is not None:
            raise UnsupportedError("llama_main keeps nothing between two requests; leave session out")
        if request.stop_ids and set(request.stop_ids) != set(self._manifest.tokens.stop):
            raise UnsupportedError(
                f"llama_main stops at the program's own ids alone ({', '.join(map(str, self._manifest.tokens.stop))}); "
                "leave stop_ids out, or use the agent"
            )

    def _text(self, ids: Sequence[int]) -> str:
        text = self._texts.decode(ids)
        if self._texts.encode(text) != list(ids):
            raise UnsupportedError(
                "llama_main takes text, and the tokenizer makes other ids of these ids' text; use the agent"
            )
        return text

    def _stream(self, request: TokenRequest, text: str) -> Generator[TokenRecord, None, None]:
        if not self._running.acquire(blocking=False):
            raise RequestError("another request is running; read it to its end or close it first")
        try:
            if request.deadline_s is not None and request.deadline_s <= 0:
                yield self._cut_short(request, "deadline")
                return
            output = self._run(request, text)
            if output is None:
                assert self._cut is not None
                yield self._cut_short(request, self._cut)
                return
            answer, observed = output
            yield from self._records(request, text, answer, observed)
        finally:
            self._running.release()

    def _run(self, request: TokenRequest, text: str, *flags: str) -> tuple[str, Mapping[str, int]] | None:
        """The answer's text and the runner's figures; None when it was cut short."""
        room = min(request.max_new_tokens, self._context_tokens - len(request.ids))
        # Through a file: a NUL or 100 kB of text cannot be an argument.
        prompt = f"{self._folder}/prompt.{secrets.token_hex(8)}"
        write = ["sh", "-c", 'cat >"$1"', "sh", prompt]
        self._host.run(write, deadline_s=self._host.timeouts.command_s, stdin=text.encode()).checked(
            "writing the prompt"
        )
        stops = [] if request.stop_ids else ["--ignore_eos"]
        command = [*self._command, f"--prompt_file={prompt}", f"--max_new_tokens={room}", *stops, *flags]
        reason: str | None = None
        timer = threading.Timer(request.deadline_s or self._deadline_s, self._end, ("deadline",))
        try:
            self._process = process = self._host.start(command)
            if self._cut is not None:  # cancelled before it was there
                self._end(self._cut)
            timer.start()
            lines = _bounded(process.lines())
            code = process.wait(self._host.timeouts.command_s)
            if self._cut is not None:
                return None
            if code != 0 or not lines or not lines[-1].startswith(OBSERVER):
                last, reason = process.last_lines(), self._diagnose()
                message = f"llama_main was lost: {reason}"
                if reason is None:
                    message = "llama_main failed on the device, or the connection was cut"
                raise TransportError(message, command=command, exit_code=code, last_lines=last)
        finally:
            timer.cancel()
            self._end(None)
            if reason is None:  # else the device is gone: the file that is left there does no harm
                with contextlib.suppress(TransportError):
                    self._host.run(["rm", "-f", prompt], deadline_s=self._host.timeouts.command_s)
        output = b"\n".join(lines[:-1]).decode("utf-8", "replace").removesuffix("\n")
        if not output.startswith(text):
            raise TransportError("llama_main did not echo the prompt; is it ExecuTorch's own program?")
        return output.removeprefix(text), _observed(lines[-1].removeprefix(OBSERVER))

    def _records(
        self, request: TokenRequest, text: str, answer: str, observed: Mapping[str, int]
    ) -> Generator[TokenRecord, None, None]:
        ids, prompt = self._texts.encode(text + answer), len(request.ids)
        expected = observed["generated_tokens"] + 1  # the runner does not count the first
        finish: Finish = "length"
        stop_id = error = None
        if ids[:prompt] != list(request.ids) or len(ids) - prompt != expected:
            ids, finish = [], "error"
            error = (
                f"llama_main's answer of {expected} tokens reads as {max(0, len(ids) - prompt)}: its ids cannot be "
                "recovered from its text; use the agent"
            )
        new = ids[prompt:]
        # The runner does not look whether its first token is a stop id, and goes on (executorch 1.4).
        end = next((place for place, id_ in enumerate(new) if id_ in request.stop_ids), None)
        if end is not None:
            finish, stop_id = "stop", new[end]
            new = new[:end]
        for id_ in new:
            yield NewToken(id_, None)
        yield TokensDone(
            finish=finish,
            stop_id=stop_id,
            usage=Usage(prompt=prompt, reused=0, prefilled=prompt, completion=len(new)),
            prefill_s=_seconds(observed, "inference_start_ms", "prompt_eval_end_ms"),  # its tokenising is in it
            total_s=_seconds(observed, "model_load_start_ms", "inference_end_ms"),
            error=error,
        )

    def _cut_short(self, request: TokenRequest, finish: Finish) -> TokensDone:
        usage = Usage(prompt=len(request.ids), reused=0, prefilled=0, completion=0)
        return TokensDone(finish=finish, usage=usage, prefill_s=None, total_s=None)

    def _end(self, why: Finish | None) -> None:
        if why is not None:
            self._cut = self._cut or why
        process, self._process = self._process, None
        if process is not None:
            process.close()


def _bounded(lines: Iterator[bytes]) -> list[bytes]:
    """All lines of one answer. Raises TransportError for more than an answer can have."""
    kept: list[bytes] = []
    size = 0
    for line in lines:
        kept.append(line)
        size += len(line) + 1
        if size > MOST_OUTPUT_BYTES:
            raise TransportError(f"llama_main printed more than {MOST_OUTPUT_BYTES} bytes for one answer")
    return kept


def _observed(text: bytes) -> dict[str, int]:
    """The runner's figures, whole numbers from 0 on. Raises TransportError."""
    try:
        content = parse_json(text)
        figures = {name: value for name, value in content.items() if type(value) is int and 0 <= value < 1 << 63}
        if figures["generated_tokens"] > MOST_TOKENS or figures["SCALING_FACTOR_UNITS_PER_SECOND"] < 1:
            raise ValueError("figures that no answer has")
    except (AttributeError, KeyError, ValueError) as error:
        raise TransportError(
            f"llama_main printed {text[:80]!r} for its figures ({type(error).__name__}: {error}); is it ExecuTorch's "
            "own program?"
        ) from error
    return figures


def _seconds(observed: Mapping[str, int], start: str, end: str) -> float | None:
    """Seconds between two of the runner's moments; None where it does not report them, or backwards. It reports whole
    milliseconds, so 0 means less than one."""
    if start not in observed or end not in observed or observed[end] < observed[start]:
        return None
    return (observed[end] - observed[start]) / observed["SCALING_FACTOR_UNITS_PER_SECOND"]
