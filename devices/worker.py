"""The process that is measured: `python -m devices.worker ARTIFACT [--threads N]`. It measures nothing itself.

Protocol, JSON lines; stdout carries nothing else, logs go to stderr:
  out  {"event": "ready", "protocol": 1, "open_s": ..., "versions": {...}}
  in   {"token_ids": [...], "max_new_tokens": 64, "ignore_stop_ids": true}      fields of a GenerateRequest
  out  {"event": "token", "id": ..., "at_s": ...}                               one per token
  out  {"event": "done", "finish": "length", "usage": {...}, "timings": {...}, "memory": {...}, "load_mode": ...}
  out  {"event": "error", "message": ...}                                       the user's fault; then exit 2
It serves requests until its input ends.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import click

from devices.measurement import LoadMode
from export.artifact import Artifact, open_artifact
from export.errors import ArtifactError
from runtimes.api import DoneEvent, GenerateRequest, Runtime, TokenEvent
from runtimes.errors import RuntimesError
from runtimes.fake import fake_opener
from runtimes.memory import MemorySampler
from runtimes.registry import open_runtime

PROTOCOL = 1
LIBRARIES = ("executorch", "numpy", "onnxruntime", "onnxruntime-genai", "tokenizers", "torch")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(1), default=None)
@click.option("--fake-forward-s", type=float, default=None, help="Open the shipped fake engine, this slow: for tests.")
def main(folder: Path, threads: int | None, fake_forward_s: float | None) -> None:
    """Open the artifact, say so, and serve the requests that come on stdin."""
    out = _take_stdout()
    try:
        with MemorySampler() as memory:
            begun = time.perf_counter()
            artifact = open_artifact(folder)
            engine = None if fake_forward_s is None else fake_opener(forward_s=fake_forward_s)
            runtime = open_runtime(artifact, threads=threads, engine=engine)
            open_s = time.perf_counter() - begun
            _say(out, {"event": "ready", "protocol": PROTOCOL, "open_s": open_s, "versions": _versions()})
            try:
                for line in sys.stdin:
                    _serve(runtime, artifact, memory, json.loads(line), out)
            finally:
                runtime.close()
    except (ArtifactError, RuntimesError) as error:
        _say(out, {"event": "error", "message": str(error)})
        sys.exit(2)


def _take_stdout() -> TextIO:
    """Keep stdout for the protocol: what an engine's library prints there goes to stderr from now on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _serve(runtime: Runtime, artifact: Artifact, memory: MemorySampler, fields: dict[str, Any], out: TextIO) -> None:
    # All events are kept and printed at the end: writing between two tokens would be measured as their gap.
    events = list(runtime.generate(GenerateRequest(**fields)))
    for event in events:
        if isinstance(event, TokenEvent):
            _say(out, {"event": "token", "id": event.id, "at_s": event.at_s})
    done = events[-1]
    assert isinstance(done, DoneEvent)
    used = memory.use()  # since the process began: loading is often the peak
    said = dataclasses.asdict(done) | {"memory": dataclasses.asdict(used) if used else None}
    _say(out, {"event": "done", **said, "load_mode": _load_mode(artifact)})


def _say(out: TextIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def _versions() -> dict[str, str]:
    """Python's version, and those of the known libraries that this process really loaded."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        if name.replace("-", "_") in sys.modules:
            found[name] = importlib.metadata.version(name)
    return found


def _load_mode(artifact: Artifact) -> LoadMode | None:
    """`mmap` if the artifact's largest file is mapped into this process; None where the system does not tell."""
    largest = max(artifact.manifest.files, key=lambda name: artifact.manifest.files[name].bytes)
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    path = str((artifact.folder / largest).resolve())
    return "mmap" if any(line.endswith(path) for line in maps.splitlines()) else "read"


if __name__ == "__main__":
    main()
