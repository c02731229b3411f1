"""A checkpoint's small files: read as text or as a JSON object, and never from outside of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.errors import CheckpointError
from export.strict import parse_json

INDEX = "model.safetensors.index.json"


def read_text(path: Path) -> str:
    """The text of a file. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: has no {path.name}; give a checkpoint folder as the hub has it")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not text ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError."""
    return as_object(read_text(path), path)


def as_object(text: str, path: Path) -> dict[str, Any]:
    """The object in a JSON text; `path` is named in the error. Raises CheckpointError."""
    try:
        content = parse_json(text.encode())
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: contains {type(content).__name__}, not an object")
    return content


def refuse_outside(folder: Path, path: Path) -> None:
    """A file that is copied into the artifact must lie in the checkpoint, or in the hub's cache, whose snapshots are
    links: a link to anywhere else would publish what the checkpoint's author does not own. Raises CheckpointError."""
    real, home = path.resolve(), folder.resolve()
    # .../models--owner--name/snapshots/<commit>/ links into .../models--owner--name/blobs/
    blobs = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
    if any(real.is_relative_to(place) for place in (home, *blobs)):
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    if not real.is_relative_to(Path(HF_HUB_CACHE).resolve()):
        raise CheckpointError(f"{path}: is a link out of the checkpoint, to {real}; put the file itself there")
