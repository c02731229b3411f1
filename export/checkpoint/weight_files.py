"""Which files of a checkpoint have its weights, and the headers of all of them.

As it is published there is one model.safetensors, or shards with an index. Merges and trainers also leave shards
without an index, a fresh file beside an old index, or a wrapper's name in front of every tensor's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.checkpoint.files import INDEX, read_object
from export.checkpoint.find import weights_reason
from export.checkpoint.shards import Piece, read_shard_header
from export.errors import CheckpointError

SINGLE = "model.safetensors"
SHARD = re.compile(r"model-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
# What programs put in front of names when they save a model that is wrapped in something -> the something.
WRAPPERS = re.compile(r"((base_model\.model\.|_orig_mod\.|_forward_module\.|_fsdp_wrapped_module\.|module\.)+)model\.")
# A key of config.json that names the file, as transformers 5 writes it.
NAMES_FILE = "transformers_weights"


@dataclass(frozen=True)
class Headers:
    """Every tensor of the checkpoint by its name, and what about its files was not as it is published."""

    tensors: Mapping[str, Piece]
    files: Sequence[str]
    notes: Sequence[str]


def read_headers(folder: Path, content: Mapping[str, Any]) -> Headers:
    """The headers of all weight files of a checkpoint whose config.json has this content. Raises CheckpointError."""
    weight_map, files, notes = _find_files(folder, content)
    tensors: dict[str, Piece] = {}
    for file in files:
        header = read_shard_header(folder / file)
        for name in header:
            if name in tensors:
                raise CheckpointError(f"{folder}: {name} is in {tensors[name].file.name} and in {file}; remove one")
            if weight_map.get(name, file) != file:
                raise CheckpointError(
                    f"{folder / INDEX}: has {name} in {weight_map[name]}, and it is in {file}; download it again"
                )
        tensors |= header
    tensors, unwrapped = _unwrap(tensors)
    return Headers(tensors, files, [*notes, *unwrapped])


def _find_files(folder: Path, content: Mapping[str, Any]) -> tuple[Mapping[str, str], list[str], list[str]]:
    """What the index says, the names of the weight files, notes."""
    if (named := content.get(NAMES_FILE)) is not None:
        if not isinstance(named, str) or Path(named).name != named or not (folder / named).is_file():
            raise CheckpointError(f"{folder}: config.json's {NAMES_FILE} is {named!r:.80}; it must be a file beside it")
        if named != INDEX:
            return {}, [named], []
    weight_map = _read_index(folder) if (folder / INDEX).is_file() else {}
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    has_single = (folder / SINGLE).is_file()
    if files and not missing:
        if has_single and SINGLE not in files:
            raise CheckpointError(
                f"{folder}: has two sets of weights, {SINGLE} and the shards of {INDEX}; remove the one that is old"
            )
        return weight_map, files, []
    if has_single:
        return {}, [SINGLE], [f"{INDEX} names shards that are not there, and was not used"] if missing else []
    if missing:
        raise CheckpointError(f"{folder}: shard {missing[0]} is missing; download the checkpoint again")
    return {}, _shards_by_name(folder), [f"{INDEX} is not there: the shards were found by their names"]


def _read_index(folder: Path) -> dict[str, str]:
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) and file and Path(file).name == file for file in weight_map.values()
    ):
        raise CheckpointError(
            f"{folder / INDEX}: its weight_map must give each tensor the name of a file beside it; download it again"
        )
    return weight_map


def _shards_by_name(folder: Path) -> list[str]:
    """The files model-00001-of-0000N.safetensors, all N of them."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    found = {name: match for name in names if (match := SHARD.fullmatch(name))}
    counts = sorted({match["count"] for match in found.values()})
    if len(counts) > 1:
        raise CheckpointError(
            f"{folder}: has shards of {' and of '.join(str(int(count)) for count in counts)} files, and no {INDEX}; "
            "remove the old ones"
        )
    if found:
        whole = [f"model-{number:05}-of-{counts[0]}.safetensors" for number in range(1, int(counts[0]) + 1)]
        if missing := [name for name in whole if name not in found]:
            raise CheckpointError(f"{folder}: shard {missing[0]} is missing; download the checkpoint again")
        return whole
    others = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter")]
    if others:
        raise CheckpointError(f"{folder}: has no {SINGLE}, and {others[0]} in its place; rename it if it is the model")
    raise CheckpointError(f"{folder}: has {weights_reason(names)}")


def _unwrap(tensors: Mapping[str, Piece]) -> tuple[dict[str, Piece], list[str]]:
    """The tensors without a wrapper's name in front of all of them."""
    prefix = next((match[1] for name in tensors if (match := WRAPPERS.match(name))), "")
    if not prefix or not all(name.startswith(prefix) for name in tensors):
        return dict(tensors), []
    inner = {name.removeprefix(prefix): piece for name, piece in tensors.items()}
    note = f"all {len(tensors)} tensors' names began with {prefix}, which was left out"
    return {name: replace(piece, name=name) for name, piece in inner.items()}, [note]
