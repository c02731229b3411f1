"""ExecuTorch's own text runner on this machine: a process for each repetition, which takes text."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

from devices.drivers.driver import Loading, Opened
from devices.transports.host import Host
from devices.transports.self_timed import ProcessFacts, SelfTimed, spelt_ids
from devices.transports.texts import Texts
from export.artifact import Tokens
from runtimes.errors import EngineError, UnsupportedError
from runtimes.loop.tokens import TokenRecord, TokenRequest
from runtimes.stock.model import StockModel
from runtimes.stock.question import Answer, Question

RUNNER = ("-P", "-m", "runtimes.agent.text_runner")
TURNS = 16  # of the prompt, to find one whose answer is long enough
NO_SPECIAL = Tokens(bos=None, pad=None, stop=())


def open_runner(host: Host, model: StockModel, loading: Loading) -> Opened:
    """Nothing is loaded yet: the runner loads when it is asked, which gives all that is known of it."""
    source = TextRunner(host, model, loading)
    return Opened(source=source, finish=lambda: None, timed=source.time)


def prompt_of_words(tokenizer: Path, count: int) -> list[int]:
    """The ids that the runner's tokenizer reads in the prompt. Raises EngineError, UnsupportedError."""
    return spelt_ids(Texts(tokenizer), NO_SPECIAL, count)


class TextRunner:
    """See Timed. As a TokenSource it refuses everything: it takes no ids."""

    def __init__(self, host: Host, model: StockModel, loading: Loading) -> None:
        assert model.tokenizer is not None
        self._host, self._model, self._loading = host, model, loading
        self._texts = Texts(model.tokenizer)

    def time(self, prompt_tokens: int, new_tokens: int, warm_up: bool) -> SelfTimed:
        """Answer a prompt of ordinary words, whose order is turned until its answer is long enough.

        Raises TransportError, EngineError, UnsupportedError.
        """
        ids = spelt_ids(self._texts, NO_SPECIAL, prompt_tokens)
        question = Question(
            model=str(self._model.files[0]),
            tokenizer=str(self._model.tokenizer),
            texts=self._turned(ids),
            new_tokens=new_tokens,
            warm_up=warm_up,
            threads=self._loading.threads,
            cold=self._loading.cold,
        )
        line = json.dumps(dataclasses.asdict(question)).encode() + b"\n"
        limit_s = self._loading.total_s or self._loading.wait_s
        done = self._host.run([sys.executable, *RUNNER], deadline_s=limit_s, stdin=line)
        answer = done.facts(Answer, "running ExecuTorch's text runner")
        if answer.error is not None:
            raise EngineError(answer.error)
        return SelfTimed(
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=len(answer.pieces),
            token_ids=self._texts.encode("".join(answer.pieces)),
            load_s=answer.open_s,
            prefill_s=answer.prefill_s,
            first_token_s=answer.at_s[0] if answer.at_s else None,
            last_token_s=answer.at_s[-1] if answer.at_s else None,
            piece_at_s=answer.at_s,
            process=ProcessFacts(
                load_s=answer.load_s,
                load_mode=answer.load_mode,
                cached_share=answer.cached_share,
                memory=answer.memory,
                versions=answer.versions,
                energy_j=answer.energy_j,
                energy_source=answer.energy_source,
            ),
        )

    def _turned(self, ids: Sequence[int]) -> list[str]:
        """The ids' text, and that of the same ids from others on: the runner ends at a stop id, but not after all."""
        found = []
        for first in range(0, len(ids), max(1, len(ids) // TURNS)):
            turned = [*ids[first:], *ids[:first]]
            text = self._texts.decode(turned)
            if self._texts.encode(text) == turned:
                found.append(text)
        return found

    def stream(self, request: TokenRequest) -> Generator[TokenRecord, None, None]:
        """See TokenSource.stream."""
        raise UnsupportedError("ExecuTorch's text runner takes no token ids")

    def cancel(self) -> None:
        """Nothing runs between two calls."""

    def close(self) -> None:
        """The process ends with its answer."""
