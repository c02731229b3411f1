"""A model behind OpenAI's chat completions, by the official client: OpenAI's own, or a server that speaks the same."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

from devices.transports.cloud.service import Ask, Ended, count, failures, text
from runtimes.errors import EngineError, UnsupportedError

URL = "https://api.openai.com/v1"


class OpenAiService:
    """See devices.transports.cloud.service.Service."""

    def __init__(
        self, *, url: str, key: str, model: str, send_temperature: bool, timeout_s: float, retries: int
    ) -> None:
        """As AnthropicService; without `send_temperature` the service samples as it likes. Raises EngineError."""
        try:
            import openai
        except ImportError as error:
            raise EngineError(
                f"transport openai needs the package openai ({error})", fix="pip install 'phi-edge[cloud]'"
            ) from error
        self._library = openai
        self._url, self._model, self._send_temperature = url, model, send_temperature
        self._client = openai.OpenAI(api_key=key, base_url=url, timeout=timeout_s, max_retries=retries)

    @property
    def client_version(self) -> str:
        """See Service.client_version."""
        return self._library.__version__

    def answer(self, ask: Ask) -> Generator[str | Ended, None, None]:
        """See Service.answer."""
        with self._failures():
            turns: Any = [{"role": message.role, "content": message.content} for message in ask.messages]
            stream = self._client.chat.completions.create(
                model=self._model,
                messages=turns,
                stream=True,
                stream_options={"include_usage": True},
                **self._settings(ask),
            )
            with contextlib.closing(stream):
                yield from _parts(iter(stream), ask, self._model)

    def look(self) -> None:
        """See Service.look."""
        with self._failures():
            self._client.models.list()

    def close(self) -> None:
        """See Service.close."""
        self._client.close()

    def _settings(self, ask: Ask) -> dict[str, Any]:
        # OpenAI's newer models refuse max_tokens; other servers have known it for longer than its new name.
        settings: dict[str, Any] = {"max_completion_tokens" if self._url == URL else "max_tokens": ask.max_tokens}
        if self._send_temperature:
            settings["temperature"] = ask.temperature
        elif ask.temperature or ask.top_p is not None:
            raise UnsupportedError("send_temperature is false in the lab file: leave temperature and top_p out")
        if ask.top_p is not None:
            settings["top_p"] = ask.top_p
        if ask.stop:
            settings["stop"] = list(ask.stop)
        return settings

    def _failures(self) -> contextlib.AbstractContextManager[None]:
        return failures(self._url, self._library.APIConnectionError, self._library.OpenAIError)


def _parts(chunks: Iterator[Any], ask: Ask, model: str) -> Iterator[str | Ended]:
    """The text of each chunk's first choice; the last chunk has the counts, and no choice."""
    reason: object = None
    for chunk in chunks:
        model = text(getattr(chunk, "model", None)) or model
        for choice in (getattr(chunk, "choices", None) or [])[:1]:
            reason = getattr(choice, "finish_reason", None) or reason
            if piece := text(getattr(getattr(choice, "delta", None), "content", None)):
                yield piece
        if (usage := getattr(chunk, "usage", None)) is not None:
            details = getattr(usage, "prompt_tokens_details", None)
            ended = Ended(
                # It does not say whether the model ended its answer or one of the texts did.
                finish="length" if reason == "length" else "stop" if ask.stop else "eos",
                prompt_tokens=count(getattr(usage, "prompt_tokens", None), "prompt tokens"),
                reused_tokens=count(getattr(details, "cached_tokens", None) or 0, "cached tokens"),
                completion_tokens=count(getattr(usage, "completion_tokens", None), "completion tokens"),
                model=model,
            )
            if reason is not None:
                yield ended
