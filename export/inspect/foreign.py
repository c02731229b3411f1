"""A model that another tool exported: what its folder has that an examination needs. Weights are not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from export.artifact import TOKENIZER
from export.checkpoint.chat import Chat, read_chat
from export.checkpoint.files import read_object
from export.checkpoint.tokens import token_ids
from export.errors import ArtifactError
from export.inspect.graph import Graph, read_graph
from export.inspect.names import models_of
from export.inspect.program import Program, read_program

GENAI = "genai_config.json"
CONFIG = "config.json"
ATTENTION = "GroupQueryAttention"
# optimum's names, the one that generates first.
DECODERS = ("model.onnx", "decoder_model_merged.onnx", "decoder_with_past_model.onnx", "decoder_model.onnx")


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """One model. Every mapping is empty, and every other field None, where the folder has no such file.

    Of `graph` and `program` there is exactly one.
    """

    model: Path  # the .onnx or .pte
    settings: Mapping[str, Any]  # genai_config.json
    config: Mapping[str, Any]  # config.json of the checkpoint that the user named, or else of the folder
    generation: Mapping[str, Any]  # generation_config.json
    added_ids: Mapping[str, int] | None  # the tokenizer's added tokens -> id; None without a tokenizer
    chat: Chat
    graph: Graph | None
    program: Program | None

    @property
    def maker(self) -> str:
        """The kind of folder, for people."""
        if self.program is not None:
            return "an ExecuTorch program"
        return "a folder of onnxruntime-genai" if self.settings else "an ONNX folder"

    def part(self, *keys: str) -> Mapping[str, Any]:
        """A table of genai_config.json, such as part("model", "decoder"); empty where it has none."""
        found: Any = self.settings
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    def context_tokens(self) -> int | None:
        """How long a sequence may be, as the model's own settings say; None where they do not."""
        if self.program is not None:
            return self.program.number("get_max_context_len") or self.program.number("get_max_seq_len")
        longest = self.part("model").get("context_length", self.config.get("max_position_embeddings"))
        return longest if is_size(longest) else None


def is_size(value: Any) -> TypeGuard[int]:
    """A whole number above 0."""
    return type(value) is int and value > 0


def open_foreign(path: Path, checkpoint: Path | None) -> Foreign:
    """Read what another tool exported. `checkpoint` has the config.json that is right. Raises ArtifactError, and
    CheckpointError for JSON files or a chat template that cannot be read."""
    model = model_file(path)
    home = model.parent
    folders = [home] if path.is_file() else [home, path]
    right = [checkpoint, *folders] if checkpoint is not None else folders
    tokenizer = _object(folders, TOKENIZER)
    texts = next((folder for folder in folders if (folder / "chat_template.jinja").is_file()), home)
    program = model.suffix == ".pte"
    return Foreign(
        model=model,
        settings=_object(folders, GENAI),
        config=_object(right, CONFIG),
        generation=_object(folders, "generation_config.json"),
        added_ids=token_ids(tokenizer, home)[0] if tokenizer else None,
        chat=read_chat(texts, _object(folders, "tokenizer_config.json"), {}),
        graph=None if program else read_graph(model),
        program=read_program(model) if program else None,
    )


def model_file(path: Path) -> Path:
    """The .onnx or .pte that generates. Raises ArtifactError where there is none, or where that is not clear."""
    models = models_of(path)
    if not models:
        raise ArtifactError(f"{path}: has neither a .onnx nor a .pte; give the folder of an exported model")
    settings = _object([models[0].parent], GENAI)
    return _chosen(models, settings)


def _chosen(models: Sequence[Path], settings: Mapping[str, Any]) -> Path:
    """The one that generates. Raises ArtifactError where that is not clear."""
    decoder = (settings.get("model") or {}).get("decoder") if isinstance(settings.get("model"), dict) else None
    named = decoder.get("filename") if isinstance(decoder, dict) else None
    for name in (named, *DECODERS):
        for model in models:
            if model.name == name:
                return model
    if len(models) > 1:
        names = ", ".join(model.name for model in models)
        raise ArtifactError(f"{models[0].parent}: has several models ({names}); give the file that is meant")
    return models[0]


def _object(folders: Sequence[Path], name: str) -> Mapping[str, Any]:
    """The JSON object in the first file of that name; empty where there is none."""
    return next((read_object(folder / name) for folder in folders if (folder / name).is_file()), {})
