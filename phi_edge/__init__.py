"""Phi-3 on devices. The public Python names, each loaded when it is first used; the command line is main.py.

from phi_edge import GenerateRequest, Message, open_runtime
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devices.drivers.table import open_device_runtime
    from export.artifact import Artifact, open_artifact
    from export.request import ExportRequest
    from phi_edge.proof import export_model
    from runtimes.api import DoneEvent, GenerateRequest, Message, Runtime, TokenEvent, ToolCall
    from runtimes.registry import open_runtime
    from runtimes.text.conversation import Conversation
    from runtimes.text.runtime import TextRuntime

__all__ = [
    "Artifact",
    "Conversation",
    "DoneEvent",
    "ExportRequest",
    "GenerateRequest",
    "Message",
    "Runtime",
    "TextRuntime",
    "TokenEvent",
    "ToolCall",
    "export_model",
    "open_artifact",
    "open_device_runtime",
    "open_runtime",
]

_HOME = {
    "Artifact": "export.artifact",
    "open_artifact": "export.artifact",
    "ExportRequest": "export.request",
    "export_model": "phi_edge.proof",
    "DoneEvent": "runtimes.api",
    "GenerateRequest": "runtimes.api",
    "Message": "runtimes.api",
    "Runtime": "runtimes.api",
    "TokenEvent": "runtimes.api",
    "ToolCall": "runtimes.api",
    "Conversation": "runtimes.text.conversation",
    "TextRuntime": "runtimes.text.runtime",
    "open_runtime": "runtimes.registry",
    "open_device_runtime": "devices.drivers.table",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"phi_edge has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def _refuse_strangers() -> None:
    """Refuse a user's file or folder that has the name of one of our rooms and would be imported instead of it.

    Raises ImportError, which names the file. Under `python -m phi_edge`, where nobody catches it, exits with one line.
    """
    ours = Path(__file__).resolve().parent.parent
    for room in ("export", "runtimes", "devices"):
        found = _origin(room)
        if found is not None and not found.is_relative_to(ours / room):
            message = f"{found} hides the package {room!r} of phi-edge: rename it, or run python -P from another folder"
            if sys.argv[:1] == ["-m"]:
                print(f"Error: {message}", file=sys.stderr)
                raise SystemExit(2)
            raise ImportError(message, name=room, path=str(found))


def _origin(room: str) -> Path | None:
    """The file that `import room` would run, or has run."""
    if room in sys.modules:
        origin = getattr(sys.modules[room], "__file__", None)
    else:
        spec = importlib.util.find_spec(room)
        origin = spec.origin if spec else None
    return Path(origin).resolve() if origin else None


_refuse_strangers()
