"""The host's side of generate: text in, text out, around any source of token ids, here or on a device."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import Callable, Generator

from export.artifact import Manifest
from runtimes.api import Alternative, DoneEvent, Event, Finish, GenerateRequest, Timings, TokenEvent
from runtimes.errors import RequestError
from runtimes.loop.tokens import (
    Grammar,
    GrammarKind,
    NewToken,
    Sampling,
    TokenRecord,
    TokenRequest,
    TokensDone,
    TokenSource,
)
from runtimes.text.stream import StopScanner, TextJoiner
from runtimes.text.tokenizer import Tokenizer


class TextRuntime:
    """A Runtime over a TokenSource: tokenising, template, UTF-8 and stop strings happen here, once for all targets."""

    def __init__(
        self,
        source: TokenSource,
        tokenizer: Tokenizer,
        manifest: Manifest,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._manifest = manifest
        self._clock = clock

    @property
    def has_template(self) -> bool:
        """See Runtime.has_template."""
        return self._tokenizer.has_template

    def generate(self, request: GenerateRequest) -> Generator[Event, None, None]:
        """Token events, then one done event. Closing the iterator cancels.

        The request is accepted, checked and tokenised now: RequestError comes from here, not from the first event.
        """
        accepted = self._clock()
        _check(request)
        ids = self._encode(request)
        # Times and deadline count from here, so the source is given what is left after tokenising.
        spent_s = self._clock() - accepted
        tokens = self._source.stream(self._token_request(request, ids, spent_s))
        return self._events(request, ids, tokens, spent_s)

    def close(self) -> None:
        """Free the model. The runtime cannot be used afterwards."""
        self._source.close()

    def _encode(self, request: GenerateRequest) -> list[int]:
        if request.prompt is not None:
            return self._tokenizer.encode_prompt(request.prompt)
        if request.messages is not None:
            return self._tokenizer.encode_chat(request.messages)
        assert request.token_ids is not None
        return list(request.token_ids)

    def _token_request(self, request: GenerateRequest, ids: list[int], spent_s: float) -> TokenRequest:
        stop_ids = () if request.ignore_stop_ids else (*self._manifest.tokens.stop, *request.stop_ids)
        return TokenRequest(
            ids=ids,
            max_new_tokens=request.max_new_tokens,
            sampling=Sampling(
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                min_p=request.min_p,
                repetition_penalty=request.repetition_penalty,
                presence_penalty=request.presence_penalty,
                frequency_penalty=request.frequency_penalty,
                seed=secrets.randbits(64) if request.seed is None else request.seed,
            ),
            stop_ids=stop_ids,
            deadline_s=None if request.deadline_s is None else request.deadline_s - spent_s,
            session=request.session,
            grammar=_grammar(request),
            logprobs=request.logprobs,
        )

    def _events(
        self, request: GenerateRequest, ids: list[int], tokens: Generator[TokenRecord, None, None], spent_s: float
    ) -> Generator[Event, None, None]:
        whole = _grammar(request) is not None  # a first space belongs to the document
        joiner, scanner = TextJoiner(self._tokenizer.bytes, ids, whole=whole), StopScanner(request.stop)
        completion, stop_string = 0, None
        with contextlib.closing(tokens):
            for record in tokens:
                if isinstance(record, TokensDone):
                    yield self._done(record, completion, stop_string, scanner.rest(), spent_s)
                elif stop_string is None:  # a device may send a few more before the stop reaches it
                    completion += 1
                    scanned = scanner.add(joiner.add(record.id))
                    at_s = None if record.at_s is None else record.at_s + spent_s
                    yield TokenEvent(record.id, scanned.text, at_s, record.logprob, self._alternatives(record))
                    if scanned.stop is not None:
                        stop_string = scanned.stop
                        self._source.cancel()

    def _alternatives(self, record: NewToken) -> tuple[Alternative, ...]:
        table = self._tokenizer.bytes
        return tuple(Alternative(id, table[id].decode("utf-8", "replace"), logprob) for id, logprob in record.top)

    def _done(
        self, record: TokensDone, completion: int, stop_string: str | None, rest: str, spent_s: float
    ) -> DoneEvent:
        finish: Finish = record.finish
        if stop_string is not None:
            finish = "stop"
        elif record.stop_id is not None:
            finish = "eos" if record.stop_id in self._manifest.tokens.stop else "stop"
        return DoneEvent(
            finish=finish,
            text=rest,
            stop_string=stop_string,
            usage=dataclasses.replace(record.usage, completion=completion),
            timings=Timings(
                prefill_s=record.prefill_s,
                total_s=None if record.total_s is None else record.total_s + spent_s,
            ),
            memory=record.memory,
            error=record.error,
        )


def _check(request: GenerateRequest) -> None:
    """Refuse what contradicts itself; numbers are checked where they are used (runtimes.loop.tokens)."""
    given = [name for name in ("prompt", "messages", "token_ids") if getattr(request, name) is not None]
    if len(given) != 1:
        raise RequestError(
            f"the request has {' and '.join(given) or 'nothing'}; give one of prompt, messages, token_ids"
        )
    _grammar(request)
    if "" in request.stop:
        raise RequestError("a stop string is empty and would end every answer; leave it out")
    if request.ignore_stop_ids and (request.stop or request.stop_ids):
        raise RequestError("ignore_stop_ids asks for exactly max_new_tokens, so stop and stop_ids must be left out")


def _grammar(request: GenerateRequest) -> Grammar | None:
    """Raises RequestError where there are two."""
    schema = None if request.json_schema is None else json.dumps(request.json_schema)
    kinds: dict[GrammarKind, str | None] = {"json_schema": schema, "regex": request.regex, "lark": request.lark}
    given = [Grammar(kind, text) for kind, text in kinds.items() if text is not None]
    if len(given) > 1:
        raise RequestError(f"the request has {' and '.join(each.kind for each in given)}; give one of them")
    return given[0] if given else None
