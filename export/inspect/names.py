"""Whether a path is another tool's export, by the names of its files. Standard library only."""

from __future__ import annotations

from pathlib import Path

from export.artifact import MANIFEST

LAYOUT = "layout.json"  # which only our exports have
# Where tools put the model: onnxruntime-genai and optimum in the folder, Olive in model/, transformers.js in onnx/.
INNER = ("", "model", "onnx")
SUFFIXES = (".onnx", ".pte")


def is_foreign(path: Path) -> bool:
    """Whether it is a model that another tool exported: a folder, or a .pte or .onnx file. Only names are looked at."""
    try:
        folder = path if path.is_dir() else path.parent
        ours = any((folder / name).is_file() for name in (MANIFEST, LAYOUT))
        return not ours and models_of(path) != []
    except OSError:
        return False


def models_of(path: Path) -> list[Path]:
    """The model files, in the first of the folders that has one."""
    if path.is_file():
        return [path] if path.suffix in SUFFIXES else []
    for inner in INNER:
        if found := sorted(each for each in (path / inner).glob("*") if each.suffix in SUFFIXES):
            return found
    return []
