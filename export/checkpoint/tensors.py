"""The model's tensors among those of a checkpoint: all there, of the right shape and type, and nothing else.

Two things that config.json says are taken from the tensors instead, with a note: that the head is the embedding, where
the checkpoint has a head of its own; and that query, key and value are one matrix, where they are apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from export.checkpoint.quantisation import Quantisation, packed_reason
from export.checkpoint.quantised import QuantisedPiece, QuantisedTensor, join_parts
from export.checkpoint.shards import FLOATS, Piece, StoredTensor
from export.checkpoint.weight_files import Headers
from export.errors import CheckpointError
from export.models.phi3 import Phi3Config, SplitPhi3Config
from export.models.shape import EMBEDDING, Config, Sources
from export.scheme import HEAD

COMPARED_ROWS = 1024
# Of old Llama checkpoints: they are computed, not trained.
COMPUTED = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class Found:
    """The model's tensors, its config as they have it, and what was not as config.json says."""

    tensors: Mapping[str, StoredTensor | QuantisedTensor]
    config: Config
    notes: Sequence[str]


def find_tensors(
    folder: Path, model_type: str, config: Config, headers: Headers, quantisation: Quantisation | None
) -> Found:
    """Raises CheckpointError."""
    _refuse_unmerged(folder, headers.tensors)
    if config.num_hidden_layers > len(headers.tensors):  # before their names are made: the number may be any
        raise CheckpointError(
            f"{folder}: config.json's num_hidden_layers is {config.num_hidden_layers}, and there are only "
            f"{len(headers.tensors)} tensors in all"
        )
    config, notes = _split(config, headers.tensors)
    found = _joined(headers.tensors, config.sources(), quantisation)
    config, more = _untie(config, found)
    sources = config.sources()
    if config.tie_word_embeddings and EMBEDDING not in found and HEAD in found:
        sources[EMBEDDING] = [(HEAD, shape) for _, shape in sources[EMBEDDING]]
        more = ["the embedding is stored as lm_head.weight, to which config.json ties it"]
    found = _joined(headers.tensors, sources, quantisation)
    _refuse_others(folder, model_type, sources, found, headers)
    return Found(
        {
            tensor: make_tensor(folder, tensor, [found[name] for name, _ in pieces])
            for tensor, pieces in sources.items()
        },
        config,
        [*notes, *more],
    )


def _joined(
    tensors: Mapping[str, Piece], sources: Mapping[str, Sources], quantisation: Quantisation | None
) -> dict[str, Piece | QuantisedPiece]:
    expected = {name: shape for pieces in sources.values() for name, shape in pieces}
    return join_parts(tensors, expected, quantisation) if quantisation else dict(tensors)


def _split(config: Config, tensors: Mapping[str, Piece]) -> tuple[Config, list[str]]:
    """A Phi-3 whose trainer keeps query, key and value apart, and gate and up."""
    if type(config) is not Phi3Config or not any(".self_attn.q_proj." in name for name in tensors):
        return config, []
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return SplitPhi3Config(**values), ["query, key and value are stored apart, and gate and up; they were joined"]


def _untie(config: Config, found: Mapping[str, Piece | QuantisedPiece]) -> tuple[Config, list[str]]:
    """As transformers 5: a head that differs from the embedding is the model's, whatever config.json says."""
    head, table = found.get(HEAD), found.get(EMBEDDING)
    if not config.tie_word_embeddings or head is None or table is None or _are_equal(head, table):
        return config, []
    note = "config.json ties lm_head to the embedding, and they differ: both are kept"
    return replace(config, tie_word_embeddings=False), [note]


def _are_equal(one: Piece | QuantisedPiece, other: Piece | QuantisedPiece) -> bool:
    if isinstance(one, QuantisedPiece) or isinstance(other, QuantisedPiece) or one.shape != other.shape:
        return False
    starts = range(0, one.shape[0], COMPARED_ROWS)
    stops = (min(start + COMPARED_ROWS, one.shape[0]) for start in starts)
    return all(
        torch.equal(*(piece.read_rows(start, stop).float() for piece in (one, other)))
        for start, stop in zip(starts, stops, strict=True)
    )


def _refuse_unmerged(folder: Path, tensors: Mapping[str, Piece]) -> None:
    for name in tensors:
        if ".lora_A" in name or ".base_layer." in name or ".lora_magnitude_vector" in name:
            raise CheckpointError(
                f"{folder}: has {name}: an adapter (LoRA) that is not merged into the model; call merge_and_unload() "
                "and save the result"
            )
    if "embed_tokens.weight" in tensors:
        raise CheckpointError(
            f"{folder}: has embed_tokens.weight, not {EMBEDDING}: it was saved from the model without its head; save "
            "the whole one (AutoModelForCausalLM)"
        )


def _refuse_others(
    folder: Path,
    model_type: str,
    sources: Mapping[str, Sources],
    found: Mapping[str, Piece | QuantisedPiece],
    headers: Headers,
) -> None:
    """Every tensor of the model must be there in its shape, and none that is not the model's."""
    expected = {name: shape for pieces in sources.values() for name, shape in pieces}
    packed = packed_reason(found)
    for name, shape in expected.items():
        if name not in found:
            reason = packed or f"it has {len(found)} others in {len(headers.files)} files"
            raise CheckpointError(f"{folder}: has no tensor {name}; {reason}")
        if found[name].shape != shape:
            seen = f"{name} has shape {list(found[name].shape)}"
            raise CheckpointError(f"{folder}: {seen}; {packed or f'config.json says {list(shape)}'}")
    others = set(found) - set(expected) - {HEAD, EMBEDDING}
    if unknown := sorted(name for name in others if not name.endswith(COMPUTED)):
        raise CheckpointError(
            f"{folder}: tensor {unknown[0]} ({len(unknown)} in all) is not part of a {model_type} model"
            + (f"; {packed}" if packed else "")
        )


def make_tensor(folder: Path, name: str, pieces: Sequence[Piece | QuantisedPiece]) -> StoredTensor | QuantisedTensor:
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
        reason = packed_reason({piece.name: piece for piece in plain})
        raise CheckpointError(
            f"{folder}: {names} has type {plain[0].dtype}; allowed: {', '.join(FLOATS)}"
            + (f"; {reason}" if reason else "")
        )
    return StoredTensor(name, plain)
