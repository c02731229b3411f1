"""Phi-3 on devices. The public Python names, each loaded when it is first used; the command line is main.py.

from phi_edge import GenerateRequest, Message, open_runtime
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.artifact import Artifact, open_artifact
    from export.pipeline import export_model
    from export.request import ExportRequest
    from runtimes.api import DoneEvent, GenerateRequest, Message, Runtime, TokenEvent
    from runtimes.registry import open_runtime

__all__ = [
    "Artifact",
    "DoneEvent",
    "ExportRequest",
    "GenerateRequest",
    "Message",
    "Runtime",
    "TokenEvent",
    "export_model",
    "open_artifact",
    "open_runtime",
]

_HOME = {
    "Artifact": "export.artifact",
    "open_artifact": "export.artifact",
    "ExportRequest": "export.request",
    "export_model": "export.pipeline",
    "DoneEvent": "runtimes.api",
    "GenerateRequest": "runtimes.api",
    "Message": "runtimes.api",
    "Runtime": "runtimes.api",
    "TokenEvent": "runtimes.api",
    "open_runtime": "runtimes.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"phi_edge has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def _refuse_strangers() -> None:
    """A file export.py, runtimes.py or devices.py of the user's own, earlier on the path than ours, would be imported
    in the place of our rooms. Raises ImportError, which names the file."""
    ours = Path(__file__).resolve().parent.parent
    for room in ("export", "runtimes", "devices"):
        spec = importlib.util.find_spec(room)
        places = [spec.origin] if spec and spec.origin else list(spec.submodule_search_locations or ()) if spec else []
        found = Path(places[0]).resolve() if places and places[0] else None
        if found is not None and not found.is_relative_to(ours / room):
            raise ImportError(
                f"{found} hides the package {room!r} of phi-edge: rename it, or run python -P from another folder"
            )


_refuse_strangers()
