"""The container file: what it copies is there, and its command and health check work. No engine builds it here."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE = ROOT / "ci" / "container" / "Containerfile"
LIMIT_S = 120.0


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of each line, continued lines joined and comments left out."""
    text = "\n".join(line for line in FILE.read_text().splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def command(name: str, port: int, artifact: Path) -> list[str]:
    """The instruction's command for a port and an artifact of this machine."""
    (rest,) = (rest for instruction, rest in instructions() if instruction == name)
    words: list[str] = json.loads(rest[rest.index("[") :])
    return [word.replace("8080", str(port)).replace("/artifact", str(artifact)) for word in words]


def test_what_it_copies_and_installs_is_there() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for instruction, rest in instructions():
        if instruction == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and f"!{source}" in ignored
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"onnx", "cuda", "serve"} <= set(extras)
    assert ("ARG", "ENGINE=onnx") in instructions() and "[${ENGINE},serve]" in FILE.read_text()
    users = [rest for instruction, rest in instructions() if instruction == "USER"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", users[-1])


def test_its_command_answers_its_health_check(tiny_onnx: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve, check = (command(name, port, tiny_onnx) for name in ("ENTRYPOINT", "HEALTHCHECK"))
    assert serve[0] == "phi-edge" and check[0] == "python"
    program = shutil.which("phi-edge", path=str(Path(sys.executable).parent))
    assert program is not None
    check[0] = sys.executable
    environment = os.environ | {"KEY": "a-key-of-thirty-two-characters..", "no_proxy": "127.0.0.1"}
    server = subprocess.Popen([program, *serve[1:]], env=environment, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + LIMIT_S
        while subprocess.run(check, env=environment, capture_output=True, timeout=LIMIT_S).returncode:
            assert server.poll() is None and time.monotonic() < until, server.stderr and server.stderr.read()
    finally:
        server.terminate()
        server.communicate(timeout=LIMIT_S)
    assert subprocess.run(check, env=environment, capture_output=True, timeout=LIMIT_S).returncode
