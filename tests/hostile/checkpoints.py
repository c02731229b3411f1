"""Hostile checkpoints: config.json, safetensors headers, the index of shards, tokenizers before an export."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from export.models.phi3 import read_config
from hostile.mutate import TYPES, Grammar, mutate
from hostile.trial import Trial

TINY = Path(__file__).parents[2] / "export" / "tiny"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EXPORT = ["export", "ck", "out", "--dry-run", "--scheme", "int4-b32"]
# What no model can do without, and what must be of its type.
NEEDED = {"model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}
TYPED = NEEDED | {"num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"}


@functools.cache
def _sound() -> Path:
    """One layer, random, as small as the reader takes it."""
    folder = Path(tempfile.mkdtemp(prefix="phi-edge-hostile-")) / "ck"
    folder.mkdir()
    config = json.loads((TINY / "config.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    shapes = read_config(config).tensor_shapes()
    save_file({name: torch.randn(*shape).bfloat16() for name, shape in shapes.items()}, folder / WEIGHTS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    return folder


def sound(folder: Path) -> Sequence[str]:
    """A checkpoint that can be exported."""
    (folder / "ck").mkdir()
    for path in _sound().iterdir():
        os.link(path, folder / "ck" / path.name)
    return EXPORT


def sound_file(name: str) -> bytes:
    """What a file of the sound checkpoint has."""
    return (_sound() / name).read_bytes()


def with_file(folder: Path, name: str, data: bytes) -> Sequence[str]:
    """A checkpoint with these bytes as one of its files."""
    sound(folder)
    path = folder / "ck" / name
    path.unlink(missing_ok=True)  # a hard link: the others keep their content
    path.write_bytes(data)
    return EXPORT


def config(rng: random.Random) -> Trial:
    """A config.json with one fault."""
    content = json.loads(sound_file("config.json"))
    grammar = Grammar(free=lambda path: path[0] not in TYPED, needs_keys=lambda path: path[0] in NEEDED)
    mutation = mutate(rng, content, grammar)
    return Trial(
        f"config {mutation.what}", lambda folder: with_file(folder, "config.json", mutation.data), mutation.breaks
    )


def tokenizer(rng: random.Random) -> Trial:
    """A tokenizer of a checkpoint with one fault: it is refused before the export, or it runs."""
    contents = {name: json.loads(sound_file(name)) for name in ("tokenizer.json", "tokenizer_config.json")}
    name = rng.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
    mutation = mutate(rng, contents[name], Grammar(free=lambda path: True))
    return Trial(
        f"checkpoint's {name} {mutation.what}", lambda folder: with_file(folder, name, mutation.data), mutation.breaks
    )


Header = dict[str, Any]


def _split() -> tuple[Header, bytes]:
    data = sound_file(WEIGHTS)
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _join(header: Any, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _tensor(rng: random.Random, header: Header) -> Header:
    entry: Header = header[rng.choice([name for name in header if name != "__metadata__"])]
    return entry


def _overlap(rng: random.Random, header: Header, body: bytes) -> bytes:
    entry = _tensor(rng, header)
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    start = rng.choice([at for at in range(0, len(body) - size, 2) if at != entry["data_offsets"][0]])
    entry["data_offsets"] = [start, start + size]
    return _join(header, body)


def _negative(rng: random.Random, header: Header, body: bytes) -> bytes:
    entry = _tensor(rng, header)
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    entry["data_offsets"] = [-16, size - 16]
    return _join(header, body)


def _outside(rng: random.Random, header: Header, body: bytes) -> bytes:
    entry = _tensor(rng, header)
    entry["data_offsets"] = [at + len(body) for at in entry["data_offsets"]]
    return _join(header, body)


def _offsets(rng: random.Random, header: Header, body: bytes) -> bytes:
    _tensor(rng, header)["data_offsets"] = rng.choice([[], [0], [0, 1, 2], None, "0", [0.5, 2.5], [True, 4], [2, 0]])
    return _join(header, body)


def _shape(rng: random.Random, header: Header, body: bytes) -> bytes:
    _tensor(rng, header)["shape"] = rng.choice([[], None, 5, ["a"], [-64, 64], [64.0, 64.0], [10**30], [0], [[64]]])
    return _join(header, body)


def _dtype(rng: random.Random, header: Header, body: bytes) -> bytes:
    _tensor(rng, header)["dtype"] = rng.choice(["F8_E4M3", "U8", "I32", "", None, 5, ["BF16"], "bf16", "F64"])
    return _join(header, body)


def _key(rng: random.Random, header: Header, body: bytes) -> bytes:
    del _tensor(rng, header)[rng.choice(["dtype", "shape", "data_offsets"])]
    return _join(header, body)


def _entry(rng: random.Random, header: Header, body: bytes) -> bytes:
    header[rng.choice(list(header))] = rng.choice([value for value in TYPES if value != {} and value != {"x": 1}])
    return _join(header, body)


def _missing(rng: random.Random, header: Header, body: bytes) -> bytes:
    del header[rng.choice([name for name in header if name != "__metadata__"])]
    return _join(header, body)


def _renamed(rng: random.Random, header: Header, body: bytes) -> bytes:
    name = rng.choice([name for name in header if name != "__metadata__"])
    header[rng.choice(["_orig_mod.", "module.", "\x1b[2J", "base_model.model."]) + name] = header.pop(name)
    return _join(header, body)


def _length(rng: random.Random, header: Header, body: bytes) -> bytes:
    return _join(header, body, rng.choice([0, 1, 7, 2**31, 2**63, 2**64 - 1, 3_000_000_000]))


def _no_header(rng: random.Random, header: Header, body: bytes) -> bytes:
    return _join(rng.choice([b"[]", b"null", b"7", b"{", b'{"a":NaN}', b"[" * 100_000, b"\xff" * 64]), body)


def _cut(rng: random.Random, header: Header, body: bytes) -> bytes:
    data = _join(header, body)
    return data[: rng.randrange(len(data))]


def _trailing(rng: random.Random, header: Header, body: bytes) -> bytes:
    return _join(header, body) + bytes(rng.randrange(1, 999))


def _twice(rng: random.Random, header: Header, body: bytes) -> bytes:
    text = json.dumps(header)
    name = rng.choice([name for name in header if name != "__metadata__"])
    return _join((text[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}").encode(), body)


def _not_finite(rng: random.Random, header: Header, body: bytes) -> bytes:
    entry = _tensor(rng, header)
    data, at = bytearray(body), entry["data_offsets"][0]
    data[at : at + 2] = rng.choice([b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"])
    return _join(header, bytes(data))


HEADER_FAULTS: tuple[Callable[[random.Random, Header, bytes], bytes], ...] = (
    _overlap, _negative, _outside, _offsets, _shape, _dtype, _key, _entry, _missing, _renamed, _length, _no_header,
    _cut, _trailing, _twice,
)  # fmt: skip


def header(rng: random.Random) -> Trial:
    """A safetensors file that lies, or is none."""
    fault = rng.choice(HEADER_FAULTS)
    content, body = _split()
    data = fault(rng, content, body)
    return Trial(
        f"safetensors: {fault.__name__.strip('_')}", lambda folder: with_file(folder, WEIGHTS, data), breaks=True
    )


def sound_header() -> bytes:
    """The header of the sound checkpoint's safetensors file, which is JSON."""
    return json.dumps(_split()[0]).encode()


def with_header(folder: Path, header: bytes) -> Sequence[str]:
    """A checkpoint with these bytes as the header of its safetensors file."""
    return with_file(folder, WEIGHTS, _join(header, _split()[1]))


def index(rng: random.Random) -> Trial:
    """An index of shards that lies. All weights are there in one file, so that a reader may pass over it."""
    names = [name for name in _split()[0] if name != "__metadata__"]
    sound_index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, WEIGHTS)}
    content = json.loads(json.dumps(sound_index))
    name = rng.choice(names)
    shard = rng.choice(
        ["../ck/" + WEIGHTS, "/proc/version", "missing.safetensors", "", ".", None, 5, [WEIGHTS], "a" * 5_000, "\0"]
    )
    content["weight_map"][name] = shard
    data: bytes = json.dumps(content).encode()
    if rng.random() < 0.3:
        data = json.dumps({"weight_map": rng.choice([None, [], 5, "x", {}, {"a": {}}])}).encode()
    elif rng.random() < 0.3:
        data = data[: rng.randrange(1, len(data) - 2)]
    return Trial(f"index: {name} in {shard!r:.40}", lambda folder: with_file(folder, INDEX, data), breaks=False)
