"""Importing the room imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("numpy", "onnxruntime", "torch", "executorch", "tokenizers", "jinja2", "transformers", "click")


@pytest.mark.parametrize(
    "module",
    [
        "runtimes",
        "runtimes.agent",
        "runtimes.api",
        "runtimes.errors",
        "runtimes.engines.executorch_engine",
        "runtimes.system.windows.dxgi",
        "runtimes.engines.fake",
        "runtimes.engines.genai_engine",
        "runtimes.loop.loop",
        "runtimes.system.memory",
        "runtimes.engines.onnx_engine",
        "runtimes.registry",
        "devices.transports.remote_tokens",
        "runtimes.text.runtime",
        "runtimes.loop.sampling",
        "devices.transports.ssh",
        "runtimes.text.template",
        "runtimes.text.tokenizer",
        "runtimes.engines.directml",
    ],
)
def test_importing_it_imports_no_library(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert seen.stdout.strip() == "[]"


def test_the_fake_needs_numpy_and_tokenizers_alone() -> None:
    program = (
        "import sys, pathlib, tempfile\n"
        "from runtimes import GenerateRequest, Message, open_runtime\n"
        "from runtimes.engines.fake import fake_artifact, fake_opener\n"
        "folder = pathlib.Path(tempfile.mkdtemp()) / 'a'\n"
        "runtime = open_runtime(fake_artifact(folder), engine=fake_opener('Hi'))\n"
        "list(runtime.generate(GenerateRequest(messages=[Message('user', 'Hello')])))\n"
        "print([name for name in ('onnxruntime', 'torch', 'executorch', 'transformers') if name in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert seen.stdout.strip() == "[]"
