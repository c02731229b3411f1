"""A service as a device: it is asked over HTTPS, and takes no artifact.

It is a Driver, so that the lab's other verbs meet it: to stage or open an artifact is refused in one line.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime

from devices.drivers.cloud.device import AnthropicDevice, CloudDevice, OpenAiDevice
from devices.drivers.driver import Finding, Loading, Opened, Say, Transport
from devices.drivers.identity import Identity
from devices.errors import DeviceError
from devices.transports.cloud.runtime import CloudRuntime
from devices.transports.cloud.service import Service
from export.artifact import Artifact
from runtimes.errors import RuntimesError, UnsupportedError
from runtimes.system.conditions import Conditions

LOOK_S = 20.0
NO_KEY = "none"  # what a server that wants no key is sent, since a client sends something


class CloudDriver:
    """See devices.drivers.driver.Driver."""

    def __init__(self, name: str, device: CloudDevice) -> None:
        self.name = name
        self.device = device

    def open_runtime(self, *, timeout_s: float = 600.0, retries: int = 2) -> CloudRuntime:
        """The generate interface over the model, with connections of its own. `retries` are for what the service
        refuses for a moment: a measured request has none. Raises DeviceError without a key, EngineError without the
        client's library."""
        return CloudRuntime(self._service(timeout_s, retries))

    def conditions(self) -> Conditions:
        """Nothing is known of a service's machines."""
        return Conditions(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            system=f"a service at {self.device.url}",
            boot_id=None,
            cpu_model=None,
            logical_cores=None,
            allowed_cores=None,
            governor=None,
            frequency_hz=None,
            temperature_c=None,
            load_average_1min=None,
            busy_share=None,
            memory_total_bytes=None,
            memory_available_bytes=None,
            swap_total_bytes=None,
            swap_used_bytes=None,
        )

    def identify(self) -> Identity:
        """See Driver.identify."""
        with contextlib.closing(self._service(LOOK_S, 0)) as service:
            service.look()
        return Identity(serial=None, model=self.device.model, memory_bytes=None, system=self.device.url)

    def stage(self, artifact: Artifact, say: Say) -> None:
        """Refuses: see _no_artifact."""
        raise self._no_artifact()

    def open(self, artifact: Artifact, loading: Loading) -> Opened:
        """Refuses: see _no_artifact."""
        raise self._no_artifact()

    def examine(self) -> Iterator[Finding]:
        """See Driver.examine."""
        try:
            self.identify()
        except (DeviceError, RuntimesError) as error:
            seen = " ".join(str(error).split())
            yield Finding(what="service", state="wrong", seen=seen, fix=f"see device.{self.name} in lab.toml")
        else:
            yield Finding(what="service", state="ok", seen=f"{self.device.url} answers")

    def close(self) -> None:
        """Nothing is open."""

    def _no_artifact(self) -> UnsupportedError:
        return UnsupportedError(
            f"device {self.name} is a service that runs {self.device.model}, and takes no artifact; bench, score and "
            "run ask it without one"
        )

    def _service(self, timeout_s: float, retries: int) -> Service:
        variable = self.device.key_env
        key = NO_KEY if variable is None else os.environ.get(variable, "")
        if not key:
            raise DeviceError(
                f"device {self.name} needs a key, and the environment variable {variable} has none; set it, or name "
                "another as key_env in lab.toml"
            )
        return self.device.service(key, timeout_s, retries)


ANTHROPIC = Transport(row=AnthropicDevice, driver=CloudDriver)
OPENAI = Transport(row=OpenAiDevice, driver=CloudDriver)
