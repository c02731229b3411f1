"""ONNX Runtime's official builds report usage to their maker: from the import on, a device id and an event queue are
written to the user's cache, and some seconds later a server is looked up.

`disable_telemetry_events()` comes too late for both. This is called before every import of onnxruntime and
onnxruntime_genai; agents on devices run the same code, and the native agent and the app bundles set the same variable.
"""

from __future__ import annotations

import os

VARIABLE = "ORT_DISABLE_TELEMETRY"


def switch_telemetry_off() -> None:
    """For this process and those that it starts."""
    os.environ[VARIABLE] = "1"
