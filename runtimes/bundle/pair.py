"""A model in two float types in one web bundle, of which the page takes the one that its graphics adapter can run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.artifact import Artifact, Manifest
from runtimes.errors import RequestError

ORDER = ("float16", "float32")  # of the folders; the page takes the first that runs


def model_folders(folder: str, artifact: Artifact, also: Artifact | None) -> dict[str, Artifact]:
    """Folder in the bundle -> artifact: `folder` for one alone. Raises RequestError where the two are not one model in
    two float types."""
    if also is None:
        return {folder: artifact}
    one, other = _facts(artifact.manifest), _facts(also.manifest)
    if differs := next((name for name, value in one.items() if value != other[name]), None):
        raise RequestError(
            f"--also {also.folder}: is another model than {artifact.folder}, by its {differs}; export both alike, "
            "each with its own --activations"
        )
    by_type = {float_type(each.manifest): each for each in (artifact, also)}
    if len(by_type) == 1:
        (seen,) = by_type
        raise RequestError(
            f"--also {also.folder}: both are in {seen}; export one of them with --activations "
            f"{next(name for name in ORDER if name != seen)}"
        )
    return {f"{folder}-{name}": by_type[name] for name in ORDER}


def float_type(manifest: Manifest) -> str:
    """Of the graph's numbers and of its KV cache: `float16` or `float32`."""
    return manifest.scheme.activations.partition(",")[0]


def _facts(manifest: Manifest) -> Mapping[str, Any]:
    """What two artifacts of one model have in common."""
    return {
        "checkpoint": (manifest.source.files, manifest.source.adapters),
        "scheme": manifest.scheme.name,
        "context": manifest.context_tokens,
        "stop ids": manifest.tokens,
    }
