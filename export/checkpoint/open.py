"""The checkpoint: a local folder, a hub id, or `tiny`, the small Phi-3 that ships with this package.

Everything that can be wrong with it is found here, before any work is done and before anything is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.artifact import Source, Tokens, describe_files
from export.checkpoint.byte_ranks import RANKS, tokenizer_config, tokenizer_json
from export.checkpoint.contradictions import refuse_contradictions
from export.checkpoint.quantisation import Quantisation, read_quantisation, without_quantisation
from export.checkpoint.quantised import QuantisedPiece, QuantisedTensor, join_parts
from export.checkpoint.shards import FLOATS, Piece, StoredTensor, read_shard_header
from export.errors import CheckpointError
from export.models import llama, phi3, phi3small
from export.models.shape import Config, Sources

TINY = Path(__file__).parent.parent / "tiny"
# Files that travel with the artifact, in the order of the manifest; the first three are what every runtime needs.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "added_tokens.json",
    "generation_config.json",
)
# model_type -> how its config.json is read. One row per file in export/models.
CONFIG_READERS: Mapping[str, Callable[[Mapping[str, Any]], Config]] = {
    "phi3": phi3.read_config,
    "phi3small": phi3small.read_config,
    "llama": llama.read_config,
    "mistral": llama.read_config,
}
# Texts that end an answer in Phi-3's chat format, whatever config.json's eos says.
STOP_TEXTS = ("<|end|>", "<|endoftext|>", "<|assistant|>")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder whose config has been understood and whose tensors are all there."""

    folder: Path
    name: str
    revision: str | None
    config_content: Mapping[str, Any]  # without what it says of quantisation
    config: Config
    tensors: Mapping[str, StoredTensor | QuantisedTensor]
    tokens: Tokens
    tokenizer_files: tuple[str, ...]  # those that travel as they are
    # Those that are made from the rank file of a checkpoint without a tokenizer.json: name -> content.
    made_files: Mapping[str, str]

    @property
    def artifact_files(self) -> tuple[str, ...]:
        """The tokenizer's files as an artifact has them, in the order of TOKENIZER_FILES."""
        return tuple(name for name in TOKENIZER_FILES if name in self.tokenizer_files or name in self.made_files)

    @property
    def source_files(self) -> tuple[str, ...]:
        """What the checkpoint's tokenizer is read from."""
        present = (name for name in (*TOKENIZER_FILES, RANKS) if (self.folder / name).is_file())
        return tuple(name for name in present if name != RANKS or self.made_files)

    @property
    def tokenizer(self) -> str:
        """The content of tokenizer.json."""
        return self.made_files.get("tokenizer.json") or _read_text(self.folder / "tokenizer.json")

    @property
    def weight_files(self) -> tuple[str, ...]:
        files = {file for tensor in self.tensors.values() for file in tensor.files}
        return tuple(sorted(str(file.relative_to(self.folder)) for file in files))

    @property
    def quantised(self) -> Mapping[str, QuantisedTensor]:
        """The matrices that are quantised already."""
        return {name: tensor for name, tensor in self.tensors.items() if isinstance(tensor, QuantisedTensor)}

    def describe(self) -> Source:
        """The source's part of the manifest: hashes every file that was read, which takes about a second a gigabyte."""
        index = [INDEX] if (self.folder / INDEX).is_file() else []
        names = ["config.json", *index, *self.weight_files, *self.source_files]
        return Source(
            name=self.name,
            revision=self.revision,
            model_type=str(self.config_content["model_type"]),
            files=describe_files(self.folder, names),
        )


INDEX = "model.safetensors.index.json"


def open_checkpoint(where: str) -> Checkpoint:
    """A folder, a hub id (`owner/name`, `owner/name@revision`), or `tiny`. Raises CheckpointError."""
    name, revision = where, None
    if where == "tiny":
        folder = TINY
    elif Path(where).is_dir():
        folder, name = Path(where), Path(where).resolve().name
    elif HUB_ID.fullmatch(where) and not where.startswith((".", "/")):
        folder, revision = _download(where)
    else:
        raise CheckpointError(f"{where}: no such folder, and not a hub id like microsoft/Phi-3-mini-4k-instruct")
    content = _read_json(folder / "config.json")
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_READERS:
        raise CheckpointError(f"{folder}: model_type is {model_type!r}; known: {', '.join(CONFIG_READERS)}")
    quantisation, content = read_quantisation(content), without_quantisation(content)
    refuse_contradictions(content)
    config = CONFIG_READERS[model_type](content)
    made = _make_tokenizer(folder, model_type)
    checkpoint = Checkpoint(
        folder=folder,
        name=name,
        revision=revision,
        config_content=content,
        config=config,
        tensors=_find_tensors(folder, model_type, config.sources(), quantisation),
        tokens=Tokens(bos=None, pad=None, stop=[]),
        tokenizer_files=tuple(file for file in TOKENIZER_FILES if file not in made and (folder / file).is_file()),
        made_files=made,
    )
    tokens = _read_tokens(folder, _as_json(checkpoint.tokenizer, folder / "tokenizer.json"), content, config.vocab_size)
    return replace(checkpoint, tokens=tokens)


def _make_tokenizer(folder: Path, model_type: str) -> dict[str, str]:
    """The tokenizer's files that a checkpoint lacks. Raises CheckpointError where they cannot be made."""
    if (folder / "tokenizer.json").is_file():
        return {}
    if model_type != "phi3small" or not (folder / RANKS).is_file():
        other = f", or {RANKS}," if model_type == "phi3small" else ""
        raise CheckpointError(
            f"{folder}: has no tokenizer.json{other}; save the tokenizer in its fast form beside config.json"
        )
    return {
        "tokenizer.json": tokenizer_json(folder / RANKS),
        "tokenizer_config.json": tokenizer_config(folder / "tokenizer_config.json"),
    }


def _find_tensors(
    folder: Path, model_type: str, sources: Mapping[str, Sources], quantisation: Quantisation | None
) -> dict[str, StoredTensor | QuantisedTensor]:
    """The model's tensors. Each may have its rows in several of the checkpoint's: see Config.sources."""
    expected = {name: shape for pieces in sources.values() for name, shape in pieces}
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(Path(str(file)).name == file for file in weight_map.values()):
            raise CheckpointError(
                f"{folder / INDEX}: its weight_map must give each tensor the name of a file beside it; "
                "download it again"
            )
        files = sorted(set(weight_map.values()))
    else:
        files = ["model.safetensors"]
    headers: dict[str, Piece] = {}
    for file in files:
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder}: shard {file} is missing; download the checkpoint again")
        headers |= read_shard_header(folder / file)
    found = join_parts(headers, expected, quantisation) if quantisation else headers
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{folder}: has no tensor {name}; it has {len(found)} others in {len(files)} shards")
        if found[name].shape != shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {list(found[name].shape)}; config.json says {list(shape)}"
            )
    if unknown := sorted(set(found) - set(expected) - {"lm_head.weight"}):
        raise CheckpointError(
            f"{folder}: tensor {unknown[0]} ({len(unknown)} in all) is not part of a {model_type} model"
        )
    return {
        tensor: _make_tensor(folder, tensor, [found[name] for name, _ in pieces]) for tensor, pieces in sources.items()
    }


def _make_tensor(folder: Path, name: str, pieces: Sequence[Piece | QuantisedPiece]) -> StoredTensor | QuantisedTensor:
    """A tensor of the model from the checkpoint's."""
    plain = tuple(piece for piece in pieces if isinstance(piece, Piece))
    quantised = tuple(piece for piece in pieces if isinstance(piece, QuantisedPiece))
    names = ", ".join(piece.name for piece in pieces)
    if plain and quantised:
        raise CheckpointError(
            f"{folder}: {quantised[0].name} is quantised and {plain[0].name} is not, but they are one matrix in the "
            "artifact; quantise both or neither"
        )
    if len({piece.dtype for piece in pieces}) > 1:
        raise CheckpointError(f"{folder}: {names} differ in type; save the checkpoint in one")
    if quantised:
        return QuantisedTensor(name, quantised, all(piece.is_symmetric() for piece in quantised))
    if plain[0].dtype not in FLOATS.values():
        raise CheckpointError(f"{folder}: {names} has type {plain[0].dtype}; allowed: {', '.join(FLOATS)}")
    return StoredTensor(name, plain)


def _read_tokens(folder: Path, tokenizer: Mapping[str, Any], config: Mapping[str, Any], vocab_size: int) -> Tokens:
    ids, largest_id = _token_ids(tokenizer, folder)
    generation = _read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    stop: list[int] = []
    for eos in (config.get("eos_token_id"), generation.get("eos_token_id"), *(ids.get(text) for text in STOP_TEXTS)):
        stop += [i for i in (eos if isinstance(eos, list) else [eos]) if i is not None and i not in stop]
    bos, pad = config.get("bos_token_id"), config.get("pad_token_id")
    named: dict[str, list[Any]] = {"eos_token_id": stop, "bos_token_id": [bos], "pad_token_id": [pad]}
    for key, values in named.items():
        for value in values:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise CheckpointError(f"{folder}: {key} is {value!r}; it must be a token id, a whole number from 0 on")
    if not stop:
        raise CheckpointError(f"{folder}: no token ends an answer; give config.json an eos_token_id")
    largest = max([largest_id, *stop, *(id for id in (bos, pad) if id is not None)])
    if largest >= vocab_size:
        raise CheckpointError(f"{folder}: the tokenizer has id {largest}, but config.json's vocab_size is {vocab_size}")
    return Tokens(bos=bos, pad=pad, stop=stop)


def _token_ids(tokenizer: Mapping[str, Any], folder: Path) -> tuple[dict[str, int], int]:
    """The added tokens' ids by their text, and the largest id of all."""
    try:
        added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
        vocab = tokenizer["model"]["vocab"]
        ids = [*added.values(), *(vocab.values() if isinstance(vocab, dict) else range(len(vocab)))]
        if any(isinstance(id, bool) or not isinstance(id, int) or id < 0 for id in ids):
            raise ValueError("an id that is no whole number from 0 on")
        return added, max(ids)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: tokenizer.json has no vocabulary of ids as the tokenizers library writes it "
            f"({type(error).__name__}: {error}); save the tokenizer again in its fast form"
        ) from error


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: has no {path.name}; give a checkpoint folder as the hub has it")
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise CheckpointError(f"{path}: is not text ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    return _as_json(_read_text(path), path)


def _as_json(text: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: contains {type(content).__name__}, not an object")
    return content


def _download(where: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    name, _, revision = where.partition("@")
    patterns = ["*.safetensors", INDEX, "config.json", *TOKENIZER_FILES, RANKS]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{where}: cannot be downloaded ({reason}); or give a local folder") from error
    return folder, folder.name  # the hub's cache names a snapshot's folder after its commit
