"""The rows of lab.toml for models that a service runs: where it is, what it is asked for, and what it costs.

[device.claude]
transport = "anthropic"                # or "openai", for OpenAI's chat completions and servers that speak them
model = "claude-haiku-4-5"
key_env = "ANTHROPIC_API_KEY"          # the environment variable that has the key
price = { input_usd_per_million = 1.0, output_usd_per_million = 5.0 }
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from devices.lab import Device
from devices.transports.cloud import anthropic_service, openai_service
from devices.transports.cloud.anthropic_service import AnthropicService
from devices.transports.cloud.openai_service import OpenAiService
from devices.transports.cloud.service import Service


@dataclass(frozen=True, kw_only=True)
class Price:
    """What the service's price list says, in dollars."""

    input_usd_per_million: float  # tokens
    output_usd_per_million: float

    def problem(self) -> str | None:
        """As Device.problem."""
        prices = (self.input_usd_per_million, self.output_usd_per_million)
        if all(math.isfinite(price) and price >= 0 for price in prices):
            return None
        return "has a price that is no number of dollars; give 0 or more"


@dataclass(frozen=True, kw_only=True)
class CloudDevice(Device):
    """What both protocols have."""

    model: str
    key_env: str | None = None  # the environment variable that has the key; None: the server wants none
    base_url: str | None = None  # None: the service's own
    price: Price | None = None

    def problem(self) -> str | None:
        """See Device.problem."""
        if self.meter is not None:
            return "meter is for a device that is here, and a service runs elsewhere; leave it out"
        if self.key_env is None and self.base_url is None:
            return "lacks key_env, the environment variable that has the service's key"
        if self.base_url is not None:
            url = urlsplit(self.base_url)
            if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query:
                return f"base_url {self.base_url!r:.100}; give http:// or https://, a host, and a path if it has one"
        if self.price is not None and (problem := self.price.problem()) is not None:
            return f"price {problem}"
        return super().problem()

    def key(self) -> str:
        """See Device.key."""
        return f"{self.url} {self.model}"

    @property
    def url(self) -> str:
        """Where every prompt and answer goes."""
        raise NotImplementedError

    def service(self, key: str, timeout_s: float, retries: int) -> Service:
        """The model behind the URL. It connects when it is first asked. Raises EngineError without its library."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class AnthropicDevice(CloudDevice):
    """A model behind Anthropic's messages protocol."""

    transport: Literal["anthropic"] = "anthropic"

    @property
    def url(self) -> str:
        """See CloudDevice.url."""
        return self.base_url or anthropic_service.URL

    def service(self, key: str, timeout_s: float, retries: int) -> Service:
        """See CloudDevice.service."""
        return AnthropicService(url=self.url, key=key, model=self.model, timeout_s=timeout_s, retries=retries)


@dataclass(frozen=True, kw_only=True)
class OpenAiDevice(CloudDevice):
    """A model behind OpenAI's chat completions."""

    transport: Literal["openai"] = "openai"
    send_temperature: bool = True  # some models refuse it: then they sample as they like

    @property
    def url(self) -> str:
        """See CloudDevice.url."""
        return self.base_url or openai_service.URL

    def service(self, key: str, timeout_s: float, retries: int) -> Service:
        """See CloudDevice.service."""
        return OpenAiService(
            url=self.url,
            key=key,
            model=self.model,
            send_temperature=self.send_temperature,
            timeout_s=timeout_s,
            retries=retries,
        )
