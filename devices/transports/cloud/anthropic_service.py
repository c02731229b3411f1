"""A model behind Anthropic's messages protocol, by the official client. It sends no sampling settings: it has none."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

from devices.transports.cloud.service import Ask, Ended, count, failures, text
from runtimes.errors import EngineError, UnsupportedError

URL = "https://api.anthropic.com"


class AnthropicService:
    """See devices.transports.cloud.service.Service."""

    def __init__(self, *, url: str, key: str, model: str, timeout_s: float, retries: int) -> None:
        """`timeout_s` is for each wait, `retries` for what the service refuses for a moment. Raises EngineError."""
        try:
            import anthropic
        except ImportError as error:
            raise EngineError(
                f"transport anthropic needs the package anthropic ({error})", fix="pip install 'phi-edge[cloud]'"
            ) from error
        self._library = anthropic
        self._url, self._model = url, model
        # Key and URL are always given, so that the client looks for none in the environment; no traces are written.
        self._client = anthropic.Anthropic(
            api_key=key, base_url=url, timeout=timeout_s, max_retries=retries, open_telemetry=False
        )

    @property
    def client_version(self) -> str:
        """See Service.client_version."""
        return self._library.__version__

    def answer(self, ask: Ask) -> Generator[str | Ended, None, None]:
        """See Service.answer."""
        if ask.temperature or ask.top_p is not None:
            raise UnsupportedError("the messages protocol takes no temperature and no top_p: leave them out")
        with self._failures():
            settings: dict[str, Any] = {"stop_sequences": list(ask.stop)} if ask.stop else {}
            system = "\n\n".join(message.content for message in ask.messages if message.role == "system")
            if system:
                settings["system"] = system
            turns: Any = [
                {"role": message.role, "content": message.content}
                for message in ask.messages
                if message.role != "system"
            ]
            stream = self._client.messages.create(
                model=self._model, max_tokens=ask.max_tokens, messages=turns, stream=True, **settings
            )
            with contextlib.closing(stream):
                yield from _parts(iter(stream), self._model)

    def look(self) -> None:
        """See Service.look."""
        with self._failures():
            self._client.models.list(limit=1)

    def close(self) -> None:
        """See Service.close."""
        self._client.close()

    def _failures(self) -> contextlib.AbstractContextManager[None]:
        return failures(self._url, self._library.APIConnectionError, self._library.AnthropicError)


def _parts(events: Iterator[Any], model: str) -> Iterator[str | Ended]:
    """The text of content_block_delta; the prompt's count is in message_start, the rest in the last message_delta."""
    prompt = reused = 0
    for event in events:
        kind = getattr(event, "type", None)
        if kind == "message_start":
            message = getattr(event, "message", None)
            model = text(getattr(message, "model", None)) or model
            usage = getattr(message, "usage", None)
            written = getattr(usage, "cache_creation_input_tokens", None) or 0
            reused = count(getattr(usage, "cache_read_input_tokens", None) or 0, "cached tokens")
            fresh = count(getattr(usage, "input_tokens", None), "input tokens")
            prompt = fresh + reused + count(written, "tokens written to its cache")
        elif kind == "content_block_delta":
            if piece := text(getattr(getattr(event, "delta", None), "text", None)):
                yield piece
        elif kind == "message_delta":
            delta = getattr(event, "delta", None)
            reason = getattr(delta, "stop_reason", None)
            yield Ended(
                finish="length" if reason == "max_tokens" else "stop" if reason == "stop_sequence" else "eos",
                stop_string=text(getattr(delta, "stop_sequence", None)) or None,
                prompt_tokens=prompt,
                reused_tokens=reused,
                completion_tokens=count(getattr(getattr(event, "usage", None), "output_tokens", None), "output tokens"),
                model=model,
            )
