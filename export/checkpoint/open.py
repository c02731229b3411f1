"""The checkpoint: a local folder, a hub id, or `tiny`, the small Phi-3 that ships with this package.

Everything that can be wrong with it is found here, before any work is done and before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.adapters.config import CONFIG as ADAPTER_CONFIG
from export.adapters.folder import AdapterFolder, refuse_adapter
from export.adapters.merged import MergedTensor
from export.artifact import Source, Tokens, describe_files, sha256_file
from export.checkpoint.byte_ranks import RANKS, tokenizer_config, tokenizer_json
from export.checkpoint.chat import TEMPLATE, Chat, read_chat
from export.checkpoint.contradictions import refuse_contradictions
from export.checkpoint.files import INDEX, as_object, read_object, read_text, refuse_outside
from export.checkpoint.find import find_checkpoint, folder_reason
from export.checkpoint.quantisation import Quantisation, packed_reason, read_quantisation, without_quantisation
from export.checkpoint.quantised import QuantisedTensor
from export.checkpoint.shards import StoredTensor
from export.checkpoint.tensors import find_tensors
from export.checkpoint.tokens import read_tokens
from export.checkpoint.weight_files import Headers, read_headers
from export.errors import CheckpointError
from export.models import llama, phi3, phi3small
from export.models.config import unused_keys
from export.models.shape import Config
from export.tokenizer.limited import LimitedTokenizer, TokenizerError

# Files that travel with the artifact, in the order of the manifest; the first three are what every runtime needs.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    TEMPLATE,
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


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder whose config has been understood and whose tensors are all there."""

    folder: Path
    name: str
    revision: str | None
    config_content: Mapping[str, Any]  # without what it says of quantisation
    config: Config
    tensors: Mapping[str, StoredTensor | QuantisedTensor | MergedTensor]
    tokens: Tokens
    chat: Chat
    tokenizer_files: tuple[str, ...]  # those that travel as they are
    # Those that are made from the rank file of a checkpoint without a tokenizer.json: name -> content.
    made_files: Mapping[str, str]
    notes: Sequence[str]  # what of the checkpoint was not taken as it says
    adapters: tuple[AdapterFolder, ...] = ()  # merged into the tensors

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
        return self.made_files.get("tokenizer.json") or read_text(self.folder / "tokenizer.json")

    def load_tokenizer(self) -> LimitedTokenizer:
        """The tokenizer as the tokenizers library has it: 0.2 s, and 30 MB. Raises CheckpointError."""
        try:
            return LimitedTokenizer(self.tokenizer)
        except TokenizerError as error:
            raise CheckpointError(
                f"{self.folder / 'tokenizer.json'}: cannot be loaded ({error}); save the tokenizer again in "
                "its fast form"
            ) from error

    @property
    def weight_files(self) -> tuple[str, ...]:
        files = {file for tensor in self.tensors.values() for file in tensor.files}
        return tuple(sorted(str(file.relative_to(self.folder)) for file in files))

    @property
    def quantised(self) -> Mapping[str, QuantisedTensor]:
        """The matrices that are quantised already."""
        return {name: tensor for name, tensor in self.tensors.items() if isinstance(tensor, QuantisedTensor)}

    @property
    def described_files(self) -> tuple[str, ...]:
        """Every file that is read, but those of adapters."""
        index = [INDEX] if (self.folder / INDEX).is_file() else []
        return ("config.json", *index, *self.weight_files, *self.source_files)

    def describe(self, digest: Callable[[Path], str] = sha256_file) -> Source:
        """The source's part of the manifest. Hashing takes about a second a gigabyte."""
        return Source(
            name=self.name,
            revision=self.revision,
            model_type=str(self.config_content["model_type"]),
            files=describe_files(self.folder, self.described_files, digest),
            adapters=[adapter.describe(digest) for adapter in self.adapters],
        )


# What an export reads: patterns of names.
CHECKPOINT_FILES = ("*.safetensors", INDEX, "config.json", *TOKENIZER_FILES, RANKS, ADAPTER_CONFIG)


def open_checkpoint(where: str) -> Checkpoint:
    """A folder, a hub id (`owner/name`, `owner/name@revision`), or `tiny`. Raises CheckpointError."""
    place = find_checkpoint(where, CHECKPOINT_FILES)
    folder = place.folder
    refuse_adapter(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(folder_reason(folder))
    content = read_object(folder / "config.json")
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_READERS:
        raise CheckpointError(f"{folder}: model_type is {model_type!r}; known: {', '.join(CONFIG_READERS)}")
    headers = read_headers(folder, content)
    quantisation, leftover = _read_quantisation(content, headers)
    content = without_quantisation(content)
    refuse_contradictions(content)
    found = find_tensors(folder, model_type, CONFIG_READERS[model_type](content), headers, quantisation)
    made = _make_tokenizer(folder, model_type)
    copied = tuple(file for file in TOKENIZER_FILES if file not in made and (folder / file).is_file())
    texts = _read_copied(folder, copied) | made
    contents = {name: as_object(text, folder / name) for name, text in texts.items() if name.endswith(".json")}
    chat = read_chat(folder, contents.get("tokenizer_config.json", {}), made)
    generation = contents.get("generation_config.json", {})
    tokens, notes = read_tokens(folder, contents["tokenizer.json"], chat, content, generation, found.config.vocab_size)
    unused = [f"config.json: {key} was not used" for key in unused_keys(content)]
    checkpoint = Checkpoint(
        folder=folder,
        name=place.name,
        revision=place.revision,
        config_content=content,
        config=found.config,
        tensors=found.tensors,
        tokens=tokens,
        chat=chat,
        tokenizer_files=copied,
        made_files=made,
        notes=[*headers.notes, *leftover, *found.notes, *notes, *unused],
    )
    checkpoint.load_tokenizer()  # one that cannot be loaded is refused now
    return checkpoint


def _read_quantisation(content: Mapping[str, Any], headers: Headers) -> tuple[Quantisation | None, list[str]]:
    """How the layers are stored, by config.json; or a note, where it speaks of an earlier state of float weights."""
    packed = packed_reason(headers.tensors)
    if packed is None and without_quantisation(content) != dict(content):
        return None, ["config.json says that the weights are quantised, and all of them are floats, which were taken"]
    return read_quantisation(content), []


def _read_copied(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The texts of the files that travel with the artifact: file -> text."""
    for name in names:
        refuse_outside(folder, folder / name)
    return {name: read_text(folder / name) for name in names}


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
