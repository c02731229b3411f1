"""The libFuzzer targets over the native agent: built by clang, and run over the installed engine's own library."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = ("agent_lines", "agent_manifest")
CONTEXT = 64  # tokens: short enough that prompts reach its end
LINES = b"""\
{"do": "generate", "request": 1, "ids": [5, 6, 7], "max_new_tokens": 2, "stop_ids": [9], "session": "a", "hold": true}
{"do": "generate", "request": 2, "ids": [5, 6], "max_new_tokens": 4, "temperature": 0.5, "top_k": 3, "top_p": 0.5}
 {"do": "generate", "request": 3, "ids": [5], "max_new_tokens": 1, "deadline_s": 5}
{"do": "score", "request": 4, "ids": [5, 6, 7], "first": 2, "wanted": [[1, 2], []]}
{"do": "cancel", "request": 3}
{"do": "ping", "request": 5}
"""


def missing() -> str | None:
    """Why they cannot be built here."""
    for program in ("clang", "cmake"):
        if shutil.which(program) is None:
            return f"needs {program}: run ci/install_system.sh"
    return None


def prepare(folder: Path) -> Mapping[str, str]:
    """Builds the programs, exports an artifact for them and lays out the libraries; what is there already is kept.
    Returns the variables by which the programs find them."""
    _quietly(["cmake", "-S", str(HERE), "-B", str(folder / "build"), "-DCMAKE_C_COMPILER=clang"])
    _quietly(["cmake", "--build", str(folder / "build")])
    artifact, libraries, other = folder / "artifact", folder / "libraries", folder / "artifact-manifest"
    if not (artifact / "manifest.json").exists():
        command = [sys.executable, "-m", "phi_edge", "export", "tiny", str(artifact), "--target", "cpu", "--quiet"]
        _quietly([*command, "--context", str(CONTEXT)])
    if not other.exists():
        shutil.copytree(artifact, other)
    libraries.mkdir(exist_ok=True)
    for package, pattern in (("onnxruntime", "capi/libonnxruntime.so.*"), ("onnxruntime_genai", "libonnx*genai.so")):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations is not None
        (found,) = Path(spec.submodule_search_locations[0]).glob(pattern)
        link = libraries / f"{found.name.partition('.so')[0]}.so"
        link.unlink(missing_ok=True)
        link.symlink_to(found)
    return {"AGENT_ARTIFACT": str(artifact), "AGENT_LIBRARIES": str(libraries), "MANIFEST_FOLDER": str(other)}


def seeds(target: str, folder: Path) -> Path:
    """A folder of sound inputs."""
    place = folder / "seeds" / target
    place.mkdir(parents=True, exist_ok=True)
    sound = LINES if target == "agent_lines" else (folder / "artifact" / "manifest.json").read_bytes()
    (place / "sound").write_bytes(sound)
    return place


def _quietly(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
