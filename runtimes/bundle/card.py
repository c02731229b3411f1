"""The model card of a folder for Hugging Face's hub: README.md, with figures of the manifest and YAML before it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from export.artifact import Artifact, Format, Manifest
from runtimes.errors import RequestError
from runtimes.system.size import size_text

# The hub's names for what runs a format.
LIBRARIES: Mapping[Format, str] = {"onnx": "onnxruntime-genai", "executorch": "executorch", "gguf": "gguf"}
USES: Mapping[Format, str] = {
    "onnx": "phi-edge, onnxruntime-genai",
    "executorch": "phi-edge, ExecuTorch's text runner",
    "gguf": "phi-edge, llama.cpp (`llama-server -m model.gguf`), Ollama",
}
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")


def model_card(artifact: Artifact, licence: Mapping[str, str]) -> str:
    """README.md. `licence`: the hub's keys for it (license, license_name, license_link), as far as they are known.

    Raises RequestError where huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import ModelCardData
    except ModuleNotFoundError as error:
        raise RequestError("a folder for the hub needs huggingface_hub: pip install 'phi-edge[export]'") from error
    values: dict[str, Any] = {**front_matter(artifact.manifest), **licence}
    data = ModelCardData(**values)
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(body(artifact)) + "\n"


def front_matter(manifest: Manifest) -> dict[str, Any]:
    """What the hub reads of a card."""
    base = manifest.source.name if HUB_NAME.fullmatch(manifest.source.name) else None
    relation = "quantized" if manifest.scheme.bits else "finetune" if manifest.source.adapters else None
    return {
        "base_model": base,
        "base_model_relation": relation if base else None,
        "library_name": LIBRARIES[manifest.format],
        "pipeline_tag": "text-generation",
        "tags": ["phi-edge", manifest.source.model_type, manifest.format, manifest.target],
    }


def body(artifact: Artifact) -> Iterator[str]:
    """The card's lines below the YAML."""
    manifest = artifact.manifest
    name, digest = manifest.source.name, manifest.digest()
    yield f"# {name}, {manifest.scheme.name}, for {manifest.target}"
    yield ""
    yield f"Exported by phi-edge as {manifest.format}. Runs in {USES[manifest.format]}."
    yield ""
    yield "| | |"
    yield "|---|---|"
    for left, right in rows(manifest):
        yield f"| {left} | {right} |"
    yield ""
    yield "```console"
    yield "$ pip install 'phi-edge[" + manifest.format + "]'"
    yield '$ phi-edge run THIS-FOLDER "Why is the sky blue?" --chat'
    yield "```"
    if manifest.notes:
        yield ""
        yield from (f"- {note}" for note in manifest.notes)
    yield ""
    yield f"`manifest.json` has the SHA-256 of every file, and of the source's files; its own digest is `{digest}`."


def rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """The card's table."""
    scheme, loss, source = manifest.scheme, manifest.loss, manifest.source
    yield "source", source.name + (f", revision {source.revision}" if source.revision else "")
    for adapter in source.adapters:
        yield "merged adapter", f"{adapter.name}, weight {adapter.weight:g}"
    yield "parameters", f"{manifest.model.parameters / 1e6:.0f} million"
    yield "files", size_text(sum(file.bytes for file in manifest.files.values()))
    if scheme.bits is None:
        yield "weights", "float"
    else:
        points = "" if scheme.symmetric else " with zero points"
        yield "weights", f"{scheme.bits} bits in blocks of {scheme.block_size}{points}, {scheme.method}"
        yield "embedding and head", f"{scheme.embedding_bits} and {scheme.head_bits} bits"
        low, high = loss.kl_interval
        yield "KL against the float model", f"{loss.mean_kl:.4f} ({low:.4f} to {high:.4f}) nats a token"
        yield "same most likely token", f"{loss.top1_agreement:.1%} of {loss.text_tokens} tokens"
        if loss.perplexity is not None and loss.float_perplexity is not None:
            yield "perplexity", f"{loss.perplexity:.2f} (float: {loss.float_perplexity:.2f})"
    yield "context", f"{manifest.context_tokens} tokens"
    if manifest.window_tokens is not None:
        yield "sliding window", f"{manifest.window_tokens} tokens"
    yield "memory", f"{size_text(manifest.memory.needed_bytes(manifest.context_tokens))} with a full context"
    yield "ids that end an answer", ", ".join(map(str, manifest.tokens.stop))
