"""What is known to be wrong with models that other tools export, one rule for each thing.

A rule judges what it can read and nothing else: where the file does not show it, the finding is "unknown" and says how
to find out. docs/neighbours.md has the table of rules, and where each was seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from export.checkpoint.tokens import turn_end
from export.errors import CheckpointError
from export.inspect import settings
from export.inspect.finding import Finding
from export.inspect.foreign import ATTENTION, Foreign
from export.inspect.graph import Graph, Node
from export.models.rope import ROPE_TYPES, rope_settings

ELEMENT_BYTES = {"float": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
LARGE_CACHE_BYTES = 8 << 30  # more than the memory of most devices
# Of ONNX Runtime's operators that graphs for the CPU have: those that DirectML has no kernel for.
NOT_IN_DIRECTML = ("GatherBlockQuantized", "SparseAttention", "If", "Loop")
# Work that belongs into a delegate: called by the program itself, it runs in ExecuTorch's portable, slow kernels.
HEAVY = ("addmm", "bmm", "convolution", "linear", "mm", "scaled_dot_product_attention")
EXPORT = "export the checkpoint with phi-edge"


def examine_foreign(model: Foreign) -> list[Finding]:
    """Everything that is known to be wrong with it, in the order of the rules. Raises CheckpointError for a config.json
    whose rope settings cannot be read."""
    return [finding for rule in RULES for finding in rule(model)]


def window(model: Foreign) -> Iterator[Finding]:
    """Attention must slide as config.json says."""
    expected, context = _window(model), model.context_tokens()
    if expected is None and (not model.config or model.config.get("layer_types")):
        return  # nothing says what is right; or each layer has its own kind of attention, which no Phi-3 has
    if expected is not None and context is not None and context <= expected:
        return  # no sequence is longer than the window
    nodes = model.graph.of(ATTENTION) if model.graph else []
    if not nodes:
        if expected is not None:
            seen = "the attention is written in operators that do not show a window"
            fix = f"compare its logits with transformers' beyond {expected} tokens, or stay within them"
            yield Finding("unknown", "sliding window", seen, f"config.json says {expected} tokens", fix)
        return
    sizes = Counter(_local_window(node) for node in nodes)
    if set(sizes) == {expected}:
        return
    seen = ", ".join(f"{_spell(size)} in {n} of {len(nodes)} attention nodes" for size, n in sizes.items())
    fix = f"stay within {min(size for size in (expected, *sizes) if size)} tokens, or {EXPORT}"
    yield Finding("wrong", "sliding window", seen, f"config.json says {_spell(expected)}", fix)


def window_cache(model: Foreign) -> Iterator[Finding]:
    """onnxruntime-genai's builder 0.18: the runtime makes a cache as long as the window, the graph knows of none."""
    entry = model.part("model", "decoder", "sliding_window")
    size, slack = entry.get("window_size"), entry.get("cache_slack", 0)
    nodes = model.graph.of(ATTENTION) if model.graph else []
    if not isinstance(size, int) or entry.get("layers") != [] or not nodes or any(map(_local_window, nodes)):
        return
    context = model.context_tokens()
    if context is not None and context <= size:
        return
    seen = f"genai_config.json has decoder.sliding_window with window_size {size} and no layers, and no layer slides"
    most = size + (slack if isinstance(slack, int) else 0)
    fix = (
        f"it stops with an error some tokens beyond {most}: remove the entry and stay within {size} tokens, or {EXPORT}"
    )
    yield Finding("wrong", "KV cache", seen, "settings and graph must agree", fix)


def long_rope(model: Foreign) -> Iterator[Finding]:
    """Long rope has short and long factors; which apply is decided by the length of each sequence, so in the graph."""
    settings = rope_settings(model.config)
    name = str(settings.get("rope_type", settings.get("type", "default")))
    original = settings.get("original_max_position_embeddings", model.config.get("original_max_position_embeddings"))
    context = model.context_tokens()
    if ROPE_TYPES.get(name) != "longrope" or not isinstance(original, int):
        return
    if context is not None and context <= original:
        return
    should = f"config.json has short factors for up to {original} tokens and long ones for more"
    known = _switches(model.graph, model.config.get("max_position_embeddings")) if model.graph else None
    if known is False:
        seen = "the graph has one table of cos and sin, chosen when it was exported"
        yield Finding("wrong", "long rope", seen, should, EXPORT)
    elif known is None:
        tools = "export_llm takes one set for all lengths and optimum-executorch none" if model.program else ""
        seen = "the file does not show which factors it uses" + (f" ({tools})" if tools else "")
        fix = f"compare its logits with transformers' at {original} and at {original + 1} tokens"
        yield Finding("unknown", "long rope", seen, should, fix)


def stop_ids(model: Foreign) -> Iterator[Finding]:
    """Every token that ends an answer, and no other one."""
    where, seen = _stop_ids(model)
    known = model.added_ids
    if not seen:
        yield Finding("wrong", "stop ids", f"{where} has none", "an answer must end", f"name them there, or {EXPORT}")
        return
    if known is None:
        return
    names = {id: text for text, id in known.items()}
    expected = {id: f"{where_from} has it" for where_from, ids in _declared(model) for id in ids}
    if (end := _answer_end(model)) is not None:
        expected[end] = "the chat template ends an answer with it"
    for id, why in expected.items():
        if id not in seen:
            text = f"{names[id]} ({id})" if id in names else str(id)
            yield Finding("wrong", "stop ids", f"{where} has {seen} without {text}", why, f"add {id} there")
    for id in seen:
        if id not in names and id not in expected:
            should = "a stop id is one of the tokenizer's added tokens"
            yield Finding("wrong", "stop ids", f"{where} has {id}, an ordinary token", should, "remove it there")


def chat_files(model: Foreign) -> Iterator[Finding]:
    """What turns a chat into tokens must be in the folder: a wrong tokenizer gives fluent nonsense, not an error."""
    if model.added_ids is None:
        seen, fix = f"no tokenizer.json beside {model.model.name}", "copy the checkpoint's"
        yield Finding("wrong", "tokenizer", seen, "a model is of no use without its own", fix)
    if model.chat.source is None:
        seen = "neither chat_template.jinja nor a chat_template in tokenizer_config.json"
        fix = "copy the checkpoint's, if it is a chat model"
        yield Finding("wrong", "chat template", seen, "a chat model answers well to its own format only", fix)


def operators(model: Foreign) -> Iterator[Finding]:
    """Nodes that will not run where the settings say."""
    if model.program is not None:
        heavy = {n: count for n, count in model.program.called().items() if _base(n) in HEAVY}
        if heavy:
            seen = ", ".join(f"{name} ({count} times)" for name, count in heavy.items()) + " outside of every delegate"
            yield Finding("wrong", "operators", seen, "a delegate should run them: portable kernels are slow", EXPORT)
    providers = _providers(model)
    if model.graph is None or "dml" not in providers:
        return
    counts = Counter(node.operator for node in model.graph.of(*NOT_IN_DIRECTML))
    counts["GroupQueryAttention with do_rotary"] = sum(
        1 for node in model.graph.of(ATTENTION) if node.attributes.get("do_rotary")
    )
    if seen := ", ".join(f"{name} ({n} nodes)" for name, n in counts.items() if n):
        fix = f"{EXPORT} for --target windows-directml"
        yield Finding("wrong", "operators", seen, "DirectML has no kernel for them, so the CPU runs them", fix)
    if model.part("search").get("past_present_share_buffer") is not True:
        seen = "genai_config.json does not set search.past_present_share_buffer"
        should = "DirectML's attention reads the cache only where past and present are one buffer"
        yield Finding("wrong", "KV cache", seen, should, "set it to true")


def cache_size(model: Foreign) -> Iterator[Finding]:
    """onnxruntime-genai reserves the KV cache for search.max_length at once."""
    decoder = model.part("model", "decoder")
    keys = ("num_hidden_layers", "num_key_value_heads", "head_size")
    given = [model.part("search").get("max_length"), *(decoder.get(key) for key in keys)]
    sizes = [size for size in given if isinstance(size, int)]
    if model.graph is None or len(sizes) < len(given):
        return
    if model.part("search").get("past_present_share_buffer") is not True:
        return
    kind = next((kind for name, kind in model.graph.inputs.items() if name.endswith(".key")), "float")
    needed = 2 * math.prod(sizes) * ELEMENT_BYTES.get(kind, 4)
    if needed > LARGE_CACHE_BYTES:
        seen = f"search.max_length {sizes[0]} reserves {needed / 2**30:.0f} GiB of KV cache at the start"
        yield Finding("wrong", "memory", seen, "it should be what the app needs", "lower it in genai_config.json")


RULES: tuple[Callable[[Foreign], Iterator[Finding]], ...] = (
    window,
    window_cache,
    long_rope,
    stop_ids,
    chat_files,
    operators,
    cache_size,
    settings.numbers,
    settings.file_name,
    settings.agreement,
)


def _window(model: Foreign) -> int | None:
    """config.json's window; None where attention is full, or where only some layers slide."""
    value, longest = model.config.get("sliding_window"), model.config.get("max_position_embeddings")
    mixed = model.config.get("layer_types") not in (None, [])
    if type(value) is not int or mixed or model.config.get("use_sliding_window") is False:
        return None
    return value if type(longest) is not int or value < longest else None


def _local_window(node: Node) -> int | None:
    size = node.attributes.get("local_window_size", -1)
    return size if isinstance(size, int) and size > 0 else None


def _spell(size: int | None) -> str:
    return "no window" if size is None else f"a window of {size}"


def _switches(graph: Graph, longest: Any) -> bool | None:
    """Whether the graph chooses between two tables of cos and sin; None where it has no table.

    It chooses with an If; or the two tables are one below the other, longer than any sequence, and positions choose.
    """
    rotated = graph.of(ATTENTION, "RotaryEmbedding")
    tables = {node.inputs[at] for node in rotated for at in _table_inputs(node) if node.inputs[at]}
    if not tables:
        return None
    if any(name in tables for node in graph.nodes if node.operator != "Constant" for name in node.outputs):
        return True
    stored = [graph.stored[name] for name in tables if name in graph.stored]
    return isinstance(longest, int) and any(table.shape[:1] > (longest,) for table in stored)


def _table_inputs(node: Node) -> range:
    """cos and sin: inputs 7 and 8 of GroupQueryAttention, 2 and 3 of RotaryEmbedding."""
    first = 7 if node.operator == ATTENTION else 2
    return range(first, min(first + 2, len(node.inputs)))


def _stop_ids(model: Foreign) -> tuple[str, list[int]]:
    """What the runtime of such a folder reads: where, and the ids."""
    if model.program is not None:
        return "the program's get_eos_ids", _ids(list(model.program.constants.get("get_eos_ids", ())))
    if model.settings:
        return "genai_config.json's eos_token_id", _ids(model.part("model").get("eos_token_id"))
    if model.generation:
        return "generation_config.json's eos_token_id", _ids(model.generation.get("eos_token_id"))
    return "config.json's eos_token_id", _ids(model.config.get("eos_token_id"))


def _declared(model: Foreign) -> list[tuple[str, list[int]]]:
    """The ids that the checkpoint's own files name."""
    files = (("generation_config.json", model.generation), ("config.json", model.config))
    return [(name, _ids(content.get("eos_token_id"))) for name, content in files]


def _ids(value: Any) -> list[int]:
    return [id for id in (value if isinstance(value, list) else [value]) if type(id) is int]


def _answer_end(model: Foreign) -> int | None:
    """The id that the chat template writes behind an answer; None where it cannot be found."""
    try:
        return turn_end(model.chat, model.added_ids or {})[0]
    except CheckpointError:
        return None


def _providers(model: Foreign) -> set[str]:
    """The execution providers of genai_config.json, in small letters."""
    options = model.part("model", "decoder", "session_options").get("provider_options")
    return {name.lower() for each in options or () if isinstance(each, dict) for name in each}


def _base(operator: str) -> str:
    """aten::mm.out -> mm"""
    return operator.rpartition("::")[2].partition(".")[0]
