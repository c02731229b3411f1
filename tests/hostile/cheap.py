"""So that a hostile input costs milliseconds: the fake engine, plans that time nothing, less time and less memory."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

import phi_edge.verbs.run
from export import plan
from export.template import allowance
from runtimes import open_runtime
from runtimes.engines.fake import fake_opener
from runtimes.text.runtime import TextRuntime

MORE_BYTES = 4 << 30  # of address space, beyond what Python and torch have


def make_cheap(replace: Callable[[object, str, object], None]) -> None:
    """Replaces names of modules by `replace`: `setattr`, or a monkeypatch's."""

    def open_fake(artifact: object, **_: object) -> TextRuntime:
        return open_runtime(artifact, engine=fake_opener("Well."))  # type: ignore[arg-type]

    replace(phi_edge.verbs.run, "open_runtime", open_fake)
    replace(plan, "seconds_per_weight", lambda job: 1e-9)
    replace(allowance, "RENDER_S", 0.5)


@contextmanager
def little_memory() -> Iterator[None]:
    """What asks for memory without a bound is refused it, here and in every process that is started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MORE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
