"""What an app ships, made from an artifact: the model's files and source code that runs them.

It compiles nothing and installs nothing. The sources are the templates in runtimes/bundle/templates.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from export.artifact import MANIFEST, Artifact, Format, refuse_incomplete, verify
from runtimes.bundle.foundry import foundry_values
from runtimes.bundle.libraries import WEB_LIBRARIES, Library, library_files
from runtimes.bundle.ollama import ollama_values
from runtimes.bundle.pair import float_type, model_folders
from runtimes.bundle.values import control_tokens, csharp_text, hidden_tokens, kotlin_text, read_turns, systemd_text
from runtimes.errors import RequestError
from runtimes.system.size import PHONE_SYSTEM_BYTES, size_text

# Versions of the libraries that the sources were written for. The exporter's own may be newer than any release here.
EXECUTORCH_ANDROID = "1.4.1"
ONNXRUNTIME_ANDROID = "1.32.0"
GENAI = "0.18.0"
NUGET = "Microsoft.ML.OnnxRuntimeGenAI"  # for the CPU
GPU_PACKAGES = {"dml": ".WinML", "cuda": ".Cuda"}  # the artifact's provider -> what is added to the name
SPARE_BYTES = 300_000_000  # between what the artifact needs and the limit at which the service is killed


@dataclass(frozen=True)
class Kind:
    """One kind of app: formats it can ship, where the model's files go, and its sources (template -> path)."""

    text: Callable[[str], str]  # how its language writes a text
    model: str
    sources: Mapping[Format, Mapping[str, str]]
    provider: str | None = None  # of the artifact; None: any
    plain: Sequence[str] = ()  # folders of `runtimes` whose files are copied as they are
    libraries: Sequence[Library] = ()  # what its folder lib gets
    models: str | None = None  # the file that lists the models' folders, for a kind that can have two
    values: Callable[[Artifact], Mapping[str, Any]] | None = None  # of its sources, beside those of every kind


_PI = {f"{unit}.j2": unit for unit in ("phi-edge.socket", "phi-edge@.service", "phi-edge-http.service")}
KINDS: dict[str, Kind] = {
    "android": Kind(
        kotlin_text,
        "model",
        {
            "executorch": {
                "android/README.md.j2": "README.md",
                "android/build.gradle.kts.j2": "build.gradle.kts",
                "android/Chat.kt.j2": "src/main/java/com/example/phiedge/Chat.kt",
                "android/ExecutorchPhi.kt.j2": "src/main/java/com/example/phiedge/PhiEdge.kt",
            },
            "onnx": {
                "android/README.md.j2": "README.md",
                "android/build.gradle.kts.j2": "build.gradle.kts",
                "android/Chat.kt.j2": "src/main/java/com/example/phiedge/Chat.kt",
                "android/OnnxPhi.kt.j2": "src/main/java/com/example/phiedge/PhiEdge.kt",
            },
        },
    ),
    "windows": Kind(
        csharp_text,
        "model",
        {
            "onnx": {
                "windows/README.md.j2": "README.md",
                "windows/PhiEdge.csproj.j2": "PhiEdge.csproj",
                "windows/PhiEdge.cs.j2": "PhiEdge.cs",
            }
        },
    ),
    "raspberry-pi": Kind(
        systemd_text,
        "model",
        {
            form: {
                "raspberry-pi/README.md.j2": "README.md",
                **{f"raspberry-pi/{template}": path for template, path in _PI.items()},
            }
            for form in ("onnx", "executorch")
        },
    ),
    "web": Kind(
        str,
        "model",
        {"onnx": {"web/README.md.j2": "README.md"}},
        provider="webgpu",
        plain=("page", "bundle/web"),
        libraries=WEB_LIBRARIES,
        models="models.json",
    ),
    "ollama": Kind(
        str,
        "model",
        {"gguf": {"ollama/Modelfile.j2": "Modelfile", "ollama/README.md.j2": "README.md"}},
        values=ollama_values,
    ),
    "foundry": Kind(
        str,
        ".",
        {
            "onnx": {
                "foundry/inference_model.json.j2": "inference_model.json",
                "foundry/README.md.j2": "README.md",
            }
        },
        values=foundry_values,
    ),
    # Its two files are made by `phi-edge bundle`, of the checkpoint too: see card.py.
    "hub": Kind(str, ".", {form: {} for form in get_args(Format)}),
}


def write_bundle(
    artifact: Artifact,
    out: Path,
    name: str,
    libraries: Path | None = None,
    more: Mapping[str, bytes] | None = None,
    also: Artifact | None = None,
) -> None:
    """Write the bundle aside, then rename it to `out`, which must not exist. `libraries` is a folder with the packages
    that it ships; None: they are downloaded. `more`: path in the bundle -> content of further files. `also`: the same
    model in the other float type.

    Raises RequestError, UnsupportedError and ArtifactError.
    """
    if out.exists():
        raise RequestError(f"{out}: is there already; give a new folder")
    if not out.parent.is_dir():
        raise RequestError(f"{out}: its folder does not exist; make it first")
    for each in (artifact, *([also] if also else [])):
        if out.resolve().is_relative_to(each.folder.resolve()):
            raise RequestError(
                f"{out}: is inside the artifact, which would not be as it was exported; give another folder"
            )
    kind = KINDS[name]
    sources = render_sources(artifact, name, also)
    folders = model_folders(kind.model, artifact, also)
    for each in folders.values():
        refuse_incomplete(each)
        verify(each)
    shipped = {path: text.encode() for path, text in sources.items()} | fixed_files(kind, libraries) | dict(more or {})
    if kind.models is not None:
        shipped[kind.models] = json.dumps([f"{folder}/" for folder in folders]).encode()
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        write_files(part, shipped)
        for folder, each in folders.items():
            copy_model(each, part / folder)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def copy_model(artifact: Artifact, folder: Path) -> None:
    """The files that its manifest lists, and the manifest."""
    for file in (*artifact.manifest.files, MANIFEST):
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.folder / MANIFEST if file == MANIFEST else artifact.path(file), target)


def write_site(folder: Path, libraries: Path | None = None) -> None:
    """The web bundle's page files and libraries, without README and model. Raises RequestError."""
    write_files(folder, fixed_files(KINDS["web"], libraries))


def fixed_files(kind: Kind, libraries: Path | None) -> dict[str, bytes]:
    """Path in the bundle -> content, of what is the same for every artifact. Raises RequestError."""
    files = {f"lib/{path}": content for path, content in library_files(kind.libraries, libraries).items()}
    for name in kind.plain:
        folder = importlib.resources.files("runtimes") / name
        files |= {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return files


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Path in the folder -> content."""
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def render_sources(artifact: Artifact, name: str, also: Artifact | None = None) -> dict[str, str]:
    """Path in the bundle -> text. Raises RequestError where such an app cannot have these artifacts."""
    import jinja2

    kind, form = KINDS[name], artifact.manifest.format
    for each in (artifact, *([also] if also else [])):
        check_artifact(each, name)
    folder = importlib.resources.files("runtimes.bundle") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["text"] = kind.text
    environment.filters["size"] = size_text
    values = _values(artifact)
    values["libraries"] = kind.libraries
    values["models"] = [_model(*pair) for pair in model_folders(kind.model, artifact, also).items()]
    if kind.values is not None:
        values |= kind.values(artifact)
    return {path: environment.get_template(template).render(values) for template, path in kind.sources[form].items()}


def check_artifact(artifact: Artifact, name: str) -> None:
    """Raises RequestError where an app of this kind cannot have it."""
    kind, form = KINDS[name], artifact.manifest.format
    if form not in kind.sources:
        raise RequestError(
            f"an app for {name} ships the format {', '.join(kind.sources)}, and this artifact's is {form}; export it "
            "for that target"
        )
    if kind.provider not in (None, artifact.manifest.engine.get("provider")):
        raise RequestError(
            f"an app for {name} needs an artifact for it, and this one is for {artifact.manifest.target}; export it "
            f"with --target {name}"
        )


def _model(folder: str, artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "folder": folder,
        "activations": float_type(manifest),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "needed_bytes": manifest.memory.needed_bytes(manifest.context_tokens),
        "digest": manifest.digest(),
    }


def _values(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    needed = manifest.memory.needed_bytes(manifest.context_tokens)
    return {
        "name": manifest.source.name,
        "form": manifest.format,
        "digest": manifest.digest(),
        "context_tokens": manifest.context_tokens,
        "stop_ids": list(manifest.tokens.stop),
        "control_tokens": control_tokens(artifact),
        "hidden_tokens": hidden_tokens(artifact),
        "notes": list(manifest.notes),
        "turns": read_turns(artifact),
        "program": next((file for file in manifest.files if file.endswith(".pte")), None),
        "model_bytes": sum(file.bytes for file in manifest.files.values()),
        "needed_bytes": needed,
        "phone_bytes": needed + PHONE_SYSTEM_BYTES,
        "limit_mib": -(-(needed + SPARE_BYTES) // 2**20),
        "executorch_android": EXECUTORCH_ANDROID,
        "onnxruntime_android": ONNXRUNTIME_ANDROID,
        "genai": GENAI,
        "package": NUGET + GPU_PACKAGES.get(str(manifest.engine.get("provider")), ""),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }
