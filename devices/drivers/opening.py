"""Start an agent on any Host and wait until it is ready: what drivers of devices with an agent share."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from devices.drivers.driver import Loading, Opened
from devices.errors import DeviceError
from devices.transports.host import Host
from devices.transports.remote_tokens import open_remote
from export.artifact import Artifact
from export.strict import build
from runtimes.agent.events import Sample, decode_event
from runtimes.engines.engine import ANY_ADAPTER, Graphics
from runtimes.errors import TransportError
from runtimes.system.conditions import Conditions

# What Python runs as an agent. With -P a file or folder of the current folder cannot take the place of our packages.
AGENT = ("-P", "-m", "runtimes.agent")


def open_agent(
    host: Host,
    command: Sequence[str],
    artifact: Artifact | None,
    loading: Loading,
    *,
    lock: str | None = None,
    here: bool = False,
    diagnose: Callable[[str | None], str | None] | None = None,
    graphics: Graphics = ANY_ADAPTER,
) -> Opened:
    """`command` starts the agent on its artifact (None: on another tool's model); the options are added. `here`: the
    device is this machine, whose clock is finer than the kernel's ticks. `diagnose` gets the boot id that the agent
    started under, and returns why the agent was lost."""
    full = [*command, "--silence-s", str(host.timeouts.unheard_s)]
    full += [] if loading.threads is None else ["--threads", str(loading.threads)]
    full += ["--cold"] if loading.cold else []
    full += [] if lock is None else ["--lock", lock]
    full += [] if graphics.adapter is None else ["--adapter", graphics.adapter]
    full += ["--allow-cpu"] if graphics.allow_cpu else []
    started_s = time.perf_counter()
    until_s = math.inf if loading.total_s is None else time.monotonic() + loading.total_s
    source = open_remote(
        host.start(full),
        manifest=None if artifact is None else artifact.manifest,
        hold=loading.hold,
        timeouts=dataclasses.replace(host.timeouts, load_s=loading.wait_s, progress_s=loading.wait_s),
        until_s=until_s,
        diagnose=diagnose,
    )
    ready = source.ready
    return Opened(
        source=source,
        load_s=time.perf_counter() - started_s if here else ready.load_s,
        open_s=ready.open_s,
        load_mode=ready.load_mode,
        cached_share=ready.cached_share,
        versions=ready.versions,
        accelerator=ready.accelerator,
        finish=source.finish,
    )


def conditions_of(line: bytes) -> Conditions:
    """What `AGENT --sample` printed, as Conditions: keys that this version does not know are skipped, absent ones are
    None. Raises TransportError for no sample line, DeviceError for a value of the wrong type."""
    event = decode_event(line)
    if not isinstance(event, Sample):
        raise TransportError(f"the agent answered --sample with {event!r:.80}")
    known = {field.name: event.conditions.get(field.name) for field in dataclasses.fields(Conditions)}
    return build(Conditions, known, "the agent's conditions", DeviceError)
