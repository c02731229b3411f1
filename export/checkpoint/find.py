"""Where a checkpoint is: `tiny`, a local folder, or a hub id, which is downloaded. Nothing of it is read here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.artifact import MANIFEST
from export.errors import CheckpointError

TINY = Path(__file__).parent.parent / "tiny"
HUB = "https://huggingface.co/"
# owner/name, perhaps with a revision: a branch, a tag, a commit or refs/pr/7.
HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+)(@(?P<revision>[A-Za-z0-9_./-]+))?")
# What other programs' weights end with -> what they are.
FOREIGN = {
    ".gguf": "llama.cpp's weights (GGUF)",
    ".bin": "pickled weights",
    ".pt": "pickled weights",
    ".pth": "pickled weights",
    ".onnx": "an ONNX model, which is an export already",
    ".pte": "an ExecuTorch program, which is an export already",
}


@dataclass(frozen=True)
class Place:
    """A checkpoint's folder, and what it is called in the manifest."""

    folder: Path
    name: str  # the folder's name, the hub id, or "tiny"
    revision: str | None  # the hub's commit


def find_checkpoint(where: str, patterns: Sequence[str]) -> Place:
    """A folder, a hub id (`owner/name`, `owner/name@revision`), or `tiny`. Of the hub, the files of `patterns` are
    downloaded. Raises CheckpointError."""
    if where == "tiny":
        return Place(TINY, where, None)
    path = Path(where)
    try:
        if where and path.is_dir():
            return Place(path, path.resolve().name, None)
        if where and path.exists():
            raise CheckpointError(file_reason(path))
    except OSError as error:  # a name that is too long, say
        raise CheckpointError(f"{where:.80}: {error.strerror}; give a checkpoint's folder") from None
    except ValueError:
        raise CheckpointError(f"{where!r:.80}: is no name of a folder; give a checkpoint's folder") from None
    if match := HUB_ID.fullmatch(where):
        return _download(where, match["name"], match["revision"], patterns)
    if where.startswith(HUB) and (match := HUB_ID.match(where.removeprefix(HUB))):
        raise CheckpointError(f"{where:.80}: is a page of the hub; give its id, {match['name']}")
    raise CheckpointError(f"{where!r:.80}: no such folder, and not a hub id like microsoft/Phi-3-mini-4k-instruct")


def folder_reason(folder: Path) -> str:
    """Why a folder without config.json is no checkpoint, and what to give instead."""
    if (folder / MANIFEST).is_file():
        return f"{folder}: is an artifact, which is an export already; give the checkpoint that it was made from"
    entries = sorted(folder.iterdir())
    inside = next((entry for entry in entries if (entry / "config.json").is_file()), None)
    if inside is not None:
        return f"{folder}: has no config.json, but {inside.name} has: give {inside}"
    foreign = next((entry for entry in entries if entry.suffix.lower() in FOREIGN), None)
    what = f", but {foreign.name}, {FOREIGN[foreign.suffix.lower()]}" if foreign is not None else ""
    return f"{folder}: has no config.json{what}; give a checkpoint folder as the hub has it"


def file_reason(path: Path) -> str:
    """Why a file is no checkpoint, and what to give instead."""
    kind = "a safetensors file" if path.suffix == ".safetensors" else FOREIGN.get(path.suffix.lower(), "a file")
    if path.suffix == ".safetensors":
        return f"{path}: is {kind}; give its folder, which must have config.json and the tokenizer too"
    return f"{path}: is {kind}, not a checkpoint; give the folder that has config.json and *.safetensors"


def weights_reason(names: Sequence[str]) -> str:
    """What a folder without usable safetensors has instead, by its files' names, and what to do."""
    suffixes = {Path(name).suffix.lower(): name for name in sorted(names, reverse=True)}
    if pickle := next((suffixes[kind] for kind in (".bin", ".pt", ".pth") if kind in suffixes), None):
        return (
            f"only pickled weights ({pickle}), which can run code as they are read; save them again with "
            "save_pretrained(folder), which writes safetensors"
        )
    if ".gguf" in suffixes:
        return f"only {FOREIGN['.gguf']} ({suffixes['.gguf']}); give the checkpoint that they were made from"
    if found := next((suffixes[kind] for kind in (".onnx", ".pte") if kind in suffixes), None):
        return f"no safetensors, but {found}: it is an export already; give the checkpoint that it was made from"
    return "no weights: neither model.safetensors nor model-00001-of-0000N.safetensors; download the checkpoint again"


def _download(where: str, name: str, revision: str | None, patterns: Sequence[str]) -> Place:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise CheckpointError(f"{where}: no such folder, and not a hub id ({first_line(error)})") from error
    except Exception as error:  # the hub's, the system's, or of the network library, which is another in each version
        raise CheckpointError(
            f"{where}: no such folder, and it cannot be downloaded ({first_line(error)}); or give a local folder"
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{where}: has {weights_reason(_hub_files(name, revision))}")
    return Place(folder, where, folder.name)  # the hub's cache names a snapshot's folder after its commit


def _hub_files(name: str, revision: str | None) -> list[str]:
    """The names of a repository's files."""
    from huggingface_hub import HfApi

    try:
        return list(HfApi().list_repo_files(name, revision=revision))
    except Exception:  # as above; it only words another error
        return []


def first_line(error: Exception) -> str:
    """The first line of an error's text that says something; its type where none does."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
