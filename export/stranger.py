"""What a path is that is no artifact, and what to do with it. Standard library only; nothing is read but names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

MANIFEST = "manifest.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?", re.ASCII)
_GIVE = "give the folder that `phi-edge export` wrote"


def not_an_artifact(path: Path) -> str:
    """One line for a path whose manifest cannot be found."""
    try:
        return _folder(path) if path.is_dir() else _file(path) if path.exists() else _missing(path)
    except OSError as error:  # a name that is too long, a folder that may not be read
        return f"{path!s:.200}: {error.strerror}; {_GIVE}"


def _missing(path: Path) -> str:
    name = str(path)
    if name == "tiny" or _HUB_ID.fullmatch(name):
        kind = "the checkpoint that ships with phi-edge" if name == "tiny" else "a model of the Hugging Face hub"
        return f"{name}: no such folder; if you mean {kind}, export it first: {_export(name)}"
    return f"{name}: no such folder; {_GIVE}"


def _file(path: Path) -> str:
    if (path.parent / MANIFEST).is_file():
        return f"{path}: is a file of an artifact; give its folder, {path.parent}"
    if path.suffix.lower() == ".gguf":
        return f"{path}: is llama.cpp's (GGUF); export the checkpoint that it was made from: {_export('CHECKPOINT')}"
    return f"{path}: is a file; {_GIVE}"


def _folder(path: Path) -> str:
    names = {each.name for each in path.iterdir()}
    if "genai_config.json" in names:
        return f"{path}: has no {MANIFEST}: another program exported it; export its checkpoint: {_export('CHECKPOINT')}"
    if "adapter_config.json" in names:
        return f"{path}: has no {MANIFEST}: it is a LoRA adapter; export it with its base (`phi-edge export --help`)"
    if "config.json" in names:
        return f"{path}: has no {MANIFEST}: it is a checkpoint; export it first: {_export(str(path))}"
    inside = sorted(name for name in names if (path / name / MANIFEST).is_file())
    if inside:
        return f"{path}: has no {MANIFEST}, but {path / inside[0]} has: give that"
    return f"{path}: has no {MANIFEST}, so it is no artifact, or its export did not finish: {_export('CHECKPOINT')}"


def _export(checkpoint: str) -> str:
    return f"phi-edge export {shlex.quote(checkpoint)} my-artifact"
