"""An adapter's folder: its config, and its tensors by the module that they change. The base is not known here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from export.adapters.config import CONFIG, MERGE_IN_PEFT, WEIGHTS, LoraConfig, read_config
from export.artifact import Adapter, describe_files, sha256_file
from export.checkpoint.shards import FLOATS, Piece, read_shard_header
from export.errors import AdapterError

PREFIX = "base_model.model."
# What PEFT calls a module's tensors -> the part. Some trainers leave the adapter's name in.
NAMES: Mapping[str, re.Pattern[str]] = {
    part: re.compile(rf"(?P<module>.+)\.{pattern}")
    for part, pattern in {
        "A": r"lora_A(\.default)?\.weight",
        "B": r"lora_B(\.default)?\.weight",
        "B bias": r"lora_B(\.default)?\.bias",
        "embedding A": r"lora_embedding_A(\.default)?",
        "embedding B": r"lora_embedding_B(\.default)?",
        "magnitude": r"lora_magnitude_vector(\.default)?(\.weight)?",
        "tokens": r"token_adapter\.trainable_tokens_delta(\.default)?",
        "base weight": r"base_layer\.weight",
        "weight": r"(modules_to_save(\.default)?\.)?weight",
        "bias": r"((modules_to_save(\.default)?|base_layer)\.)?bias",
    }.items()
}


@dataclass(frozen=True, kw_only=True)
class AdapterFolder:
    """A LoRA adapter, read but not yet compared with a base."""

    folder: Path
    weight: float  # how much of it is added
    config: LoraConfig
    parts: Mapping[str, Mapping[str, Piece]]  # a module's name -> its tensors, by the keys of NAMES

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def files(self) -> list[Path]:
        return [self.folder / name for name in (CONFIG, WEIGHTS)]

    def describe(self, digest: Callable[[Path], str] = sha256_file) -> Adapter:
        """Its part of the manifest."""
        return Adapter(
            name=self.name,
            weight=self.weight,
            base=self.config.base,
            files=describe_files(self.folder, (CONFIG, WEIGHTS), digest),
        )


def open_adapter(where: str, weight: float) -> AdapterFolder:
    """Read a folder as PEFT's save_pretrained wrote it. Raises AdapterError, and CheckpointError for a damaged file."""
    folder = Path(where)
    if not folder.is_dir():
        raise AdapterError(
            f"--adapter {where!r:.80}: no such folder; give one with {CONFIG} and {WEIGHTS} (from the hub: hf download "
            "OWNER/NAME --local-dir FOLDER)"
        )
    if not (folder / CONFIG).is_file():
        raise AdapterError(f"{folder}: has no {CONFIG}, so it is no PEFT adapter; give the folder of save_pretrained")
    config = read_config(folder)
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        seen = (
            "only pickled weights (adapter_model.bin), which can run code as they are read" if pickled else "no weights"
        )
        raise AdapterError(f"{folder}: has {seen}; save the adapter again with PEFT, which writes {WEIGHTS}")
    return AdapterFolder(folder=folder, weight=weight, config=config, parts=read_parts(folder / WEIGHTS))


def read_parts(path: Path) -> dict[str, dict[str, Piece]]:
    """A file's tensors by module and part. Raises AdapterError for a name that no LoRA has."""
    parts: dict[str, dict[str, Piece]] = {}
    for name, piece in read_shard_header(path).items():
        if piece.dtype not in FLOATS.values():
            raise AdapterError(f"{path}: {name} has type {piece.dtype}; allowed: {', '.join(FLOATS)}")
        bare = name.removeprefix(PREFIX)
        match, part = next(((m, part) for part, n in NAMES.items() if (m := n.fullmatch(bare))), (None, ""))
        if match is None or bare == name:
            raise AdapterError(
                f"{path}: {name!r:.120} is not a tensor of LoRA as PEFT saves it ({PREFIX}...lora_A.weight); save the "
                f"adapter again with PEFT's save_pretrained, or {MERGE_IN_PEFT}"
            )
        module = parts.setdefault(match["module"], {})
        if part in module:
            raise AdapterError(f"{path}: has {name} twice, once as {module[part].name}; save the adapter again")
        module[part] = piece
    if not parts:
        raise AdapterError(f"{path}: has no tensors, so the adapter changes nothing; save it again after the training")
    return parts


def refuse_adapter(folder: Path) -> None:
    """A checkpoint's folder that is an adapter's. Raises AdapterError."""
    if (folder / CONFIG).is_file() and not any(folder.glob("model*.safetensors")):
        base = read_config(folder).base
        named = f" of {base!r:.120}" if base else ""
        raise AdapterError(
            f"{folder}: is a PEFT adapter{named}, not a checkpoint; give the base, and this folder with --adapter: "
            f"phi-edge export BASE OUT --adapter {folder}"
        )
