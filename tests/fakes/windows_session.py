"""The real Windows onnxruntime under Wine: load a model, say where its nodes went, and run it on the CPU provider.

    python -m fakes.windows_session MODEL.onnx [--strict]

Exits with 1 and names each node that left DirectML unexpectedly.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ci.placements import Placement, count, fallen_back, read_placements
from runtimes.system.cache_folder import cache_folder

SCRIPT = Path(__file__).parent / "wine" / "session.js"
DIRECTML = "DmlExecutionProvider"
LIMIT_S = 400
LEFT_S = 24 * 3600.0


def windows_folder() -> Path:
    """Where the emulated Windows lies: `windows` in $PHI_EDGE_CACHE or ~/.cache/phi-edge."""
    return cache_folder() / "windows"


def missing() -> str | None:
    """What has to be installed first; None where nothing is missing."""
    lacking = [program for program in ("wine", "xvfb-run", "npm") if shutil.which(program) is None]
    return f"needs {', '.join(lacking)}: run ci/install_system.sh" if lacking else None


def build_windows() -> Path:
    """Lay out the emulated Windows unless it is there (a minute), and return its folder."""
    environment = os.environ | {"PYTHON": sys.executable}
    script = str(SCRIPT.parent.parent / "emulate_windows.sh")
    subprocess.run([script, str(windows_folder())], check=True, timeout=600, env=environment)
    return windows_folder()


@dataclass(frozen=True)
class Windows:
    """The programs, which all sessions share, and one session's own Windows (WINEPREFIX) with services of its own."""

    folder: Path
    prefix: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"WINEDEBUG": "-all", "WINEPREFIX": str(self.prefix)}


@contextlib.contextmanager
def own_windows() -> Iterator[Windows]:
    """Under one prefix all programs share one server and one screen, and die with whoever started these. A copy costs
    nothing: its libraries are links. The registry is written in place, and is copied."""
    folder = build_windows()
    for left in folder.glob("prefix-*"):  # by a run that was killed
        if time.time() - left.stat().st_mtime > LEFT_S:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="prefix-", dir=folder, ignore_cleanup_errors=True) as own:
        windows = Windows(folder, Path(own) / "prefix")
        subprocess.run(["cp", "-al", str(folder / "prefix"), str(windows.prefix)], check=True)
        for registry in (folder / "prefix").glob("*.reg"):
            (windows.prefix / registry.name).unlink()
            shutil.copy(registry, windows.prefix)
        try:
            yield windows
        finally:
            subprocess.run(["wineserver", "-k"], env=os.environ | windows.environment, check=False, timeout=60)


@dataclass(frozen=True, kw_only=True)
class WindowsSession:
    """What became of a session. `error` is onnxruntime's own text."""

    error: str | None
    logits: Sequence[Sequence[float]]
    log: str

    def placements(self) -> list[Placement]:
        return read_placements(self.log)


def run_session(
    windows: Windows,
    model: Path,
    provider: Literal["cpu", "dml"],
    *,
    strict: bool = False,
    feeds: Sequence[Mapping[str, Mapping[str, Any]]] = (),
) -> WindowsSession:
    """Make a session, and run it once for each feed; see wine/session.js."""
    with tempfile.TemporaryDirectory(dir=windows.folder) as name:
        work = Path(name)
        job = {"model": windows_path(model), "provider": provider, "strict": strict, "feeds": feeds}
        (work / "job.json").write_text(json.dumps(job))
        (work / "session.js").write_bytes(SCRIPT.read_bytes())  # node looks for packages above its script
        environment = os.environ | windows.environment | {"NODE_SKIP_PLATFORM_CHECK": "1"}
        files = [windows_path(work / file) for file in ("session.js", "job.json", "result.json")]
        command = ["xvfb-run", "-a", "wine", str(windows.folder / "node" / "bin" / "node.exe"), *files]
        with (work / "log").open("wb") as log:
            subprocess.run(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, timeout=LIMIT_S, check=False
            )
        told = (work / "log").read_text(encoding="utf-8", errors="replace")
        if not (work / "result.json").is_file():
            return WindowsSession(error="node.exe ended without a result: " + told[-500:], logits=(), log=told)
        result = json.loads((work / "result.json").read_text())
    return WindowsSession(error=result.get("error"), logits=result.get("logits", ()), log=told)


def windows_path(path: Path) -> str:
    """A path as Wine's programs see it."""
    return "Z:" + str(path.resolve()).replace("/", "\\")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--strict", action="store_true", help="forbid the CPU fallback")
    options = parser.parse_args()
    with own_windows() as windows:
        session = run_session(windows, options.model, "dml", strict=options.strict)
    if session.error is not None:
        print(session.error, file=sys.stderr)
        return 1
    placements = session.placements()
    for provider, operators in count(placements).items():
        print(provider, json.dumps(operators))
    astray = fallen_back(placements, DIRECTML)
    for item in astray:
        print(f"not on DirectML: {item.node} ({item.operator}) is on {item.provider}", file=sys.stderr)
    return 1 if astray else 0


if __name__ == "__main__":
    sys.exit(main())
