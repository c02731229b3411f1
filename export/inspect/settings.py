"""Whether genai_config.json has values that onnxruntime-genai can use, and that agree with the graph beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from export.inspect.finding import Finding
from export.inspect.foreign import ATTENTION, GENAI, Foreign, is_size

PAST_KEY = 3  # the place among a GroupQueryAttention's inputs

# The numbers that it reads, by table.
NUMBERS = {
    ("model",): ("context_length", "vocab_size"),
    ("model", "decoder"): (
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_size",
        "hidden_size",
    ),
    ("search",): ("max_length",),
}


def numbers(model: Foreign) -> Iterator[Finding]:
    """Sizes are whole numbers above 0."""
    for table, keys in NUMBERS.items():
        for key in keys:
            value = model.part(*table).get(key)
            if value is not None and not is_size(value):
                seen = f"{GENAI} has {'.'.join((*table, key))} {value!r:.60}"
                yield Finding("wrong", "settings", seen, "it is a whole number above 0", "write the model's own there")


def file_name(model: Foreign) -> Iterator[Finding]:
    """The runtime opens what the settings name, not what lies there; and folders are copied."""
    decoder = model.part("model", "decoder")
    name = decoder.get("filename")
    if not decoder or name == model.model.name or "pipeline" in decoder:
        return  # a pipeline's parts have names of their own
    seen = f"{GENAI} has model.decoder.filename {name!r:.120}"
    if not isinstance(name, str) or not name:
        should = "it names the graph"
    elif PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        should = "a whole path is right on one computer only"
    elif ".." in Path(name).parts or not (model.model.parent / name).is_file():
        should = "the folder has no such file"
    else:
        return
    yield Finding("wrong", "settings", seen, should, f"write {model.model.name} there")


def agreement(model: Foreign) -> Iterator[Finding]:
    """The runtime makes its cache as the settings say; the graph reads the one it was exported with."""
    decoder = model.part("model", "decoder")
    nodes = model.graph.of(ATTENTION) if model.graph else []
    if model.graph and nodes:
        heads = {node.attributes.get("kv_num_heads") for node in nodes}
        # A layer's attention may be written several times, in branches, which read the same cache.
        caches = {name for node in nodes for name in node.inputs[PAST_KEY : PAST_KEY + 1] if name in model.graph.inputs}
        layers = len(caches) or len(nodes)
        yield from _differing("model.decoder.num_hidden_layers", decoder, layers, "the graph has", "layers")
        if len(heads) == 1:
            yield from _differing(
                "model.decoder.num_key_value_heads", decoder, heads.pop(), "the graph has", "heads of keys and values"
            )
    yield from _differing(
        "model.vocab_size", model.part("model"), model.config.get("vocab_size"), "config.json has", "tokens"
    )
    longest, context = model.part("search").get("max_length"), model.context_tokens()
    if is_size(longest) and context is not None and longest > context:
        seen = f"{GENAI} has search.max_length {longest}"
        should = f"the model's context has {context} tokens, and the runtime refuses more"
        yield Finding("wrong", "settings", seen, should, f"write at most {context} there")


def _differing(key: str, table: Any, right: Any, who: str, things: str) -> Iterator[Finding]:
    """A size of the settings that is not the right one; nothing where either is unknown or no size."""
    value = table.get(key.rpartition(".")[2])
    if is_size(value) and is_size(right) and value != right:
        yield Finding(
            "wrong", "settings", f"{GENAI} has {key} {value}", f"{who} {right} {things}", f"write {right} there"
        )
