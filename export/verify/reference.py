"""What an artifact is held against: the checkpoint's model in float32, by an implementation that is not the artifact's.

transformers where it has the model_type; for phi3small, which it does not have, our own float module. Neither keeps a
cache, so that nothing of a shorter sequence is left in a longer one. Memory holds one matrix at a time (load_as_used).
Each can also round as an artifact's engine does (Rounding).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from export.checkpoint.open import Checkpoint
from export.checkpoint.quantised import QuantisedPiece
from export.checkpoint.shards import Piece
from export.models.attention import Cached, attend
from export.models.rope import rope_settings
from export.models.shape import EMBEDDING, on_meta
from export.verify.load_as_used import load_as_used
from export.verify.rounding import Rounding
from export.weights.kv_scales import through_cache
from export.weights.on_demand import WeightsOnDemand

Rows = npt.NDArray[np.float32]


class Reference(Protocol):
    """logits(ids, lengths) -> [len(lengths), vocab]: after the first n ids, for each n, computed from `ids` at once.

    With long rope all of the lengths are on one side of the switch.
    """

    name: str

    def logits(self, ids: Sequence[int], lengths: Sequence[int]) -> Rows: ...


class Transformers:
    """transformers' own model for the checkpoint's model_type, with given weights."""

    def __init__(self, checkpoint: Checkpoint, weights: Mapping[str, Tensor], rounding: Rounding | None = None) -> None:
        import transformers

        self.name = f"transformers {transformers.__version__}"
        content = todays_spelling(checkpoint.config_content)
        config = transformers.AutoConfig.for_model(content.pop("model_type"), **content)
        config.tie_word_embeddings = "lm_head.weight" not in weights
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # The rotary embedding is computed, not loaded: it must be made on the real device.
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        load_as_used(model, by_checkpoint_names(checkpoint, weights, model.state_dict()))
        self.model: Any = model.eval()
        self.rounding = rounding
        if rounding is not None:
            rounding.attach(model)

    def logits(self, ids: Sequence[int], lengths: Sequence[int]) -> Rows:
        """See Reference."""
        with torch.inference_mode():
            keep = torch.tensor([length - 1 for length in lengths])
            cache = self.rounding.cache() if self.rounding is not None else None
            given = {"past_key_values": cache} if cache is not None else {"use_cache": False}
            result: Rows = self.model(torch.tensor([list(ids)]), logits_to_keep=keep, **given).logits[0].numpy()
        return result


class FloatModule:
    """export.models' module with given weights: the mask over dense attention that defines block-sparse attention."""

    name = "our float module"

    def __init__(self, checkpoint: Checkpoint, weights: Mapping[str, Tensor], rounding: Rounding | None = None) -> None:
        self.config = checkpoint.config
        self.model = on_meta(self.config)
        load_as_used(self.model, by_checkpoint_names(checkpoint, weights, self.model.state_dict()))
        self.caches = rounding.caches if rounding is not None else {}
        if rounding is not None:
            rounding.attach(self.model)

    def logits(self, ids: Sequence[int], lengths: Sequence[int]) -> Rows:
        """See Reference."""
        rope, count = self.config.rope, len(ids)
        long = rope.type == "longrope" and max(lengths) > rope.original_context_tokens
        cos, sin = (torch.from_numpy(table) for table in rope.tables(count, long=long))
        total = torch.tensor([count], dtype=torch.int32)
        empty = torch.empty(1, self.config.num_key_value_heads, count, self.config.head_dim)

        def one_layer(layer: int, qkv: Tensor) -> Tensor:
            kind, call = self.config.attention(layer), Cached(qkv, empty, empty, total - 1, total, cos, sin)
            if layer in self.caches:
                call = through_cache(kind, call, self.caches[layer])
            return attend(kind, call)[0]

        with torch.inference_mode():
            *stages, head = self.model.stages(one_layer)
            values = torch.tensor([list(ids)])
            for stage in stages:
                values = stage(values)
            result: Rows = head(values[:, [length - 1 for length in lengths]])[0].numpy()
        return result


def by_checkpoint_names(
    checkpoint: Checkpoint, weights: Mapping[str, Tensor], known: Collection[str]
) -> WeightsOnDemand:
    """The model's tensors by its own names, which are `known`: what it keeps apart is taken apart as the checkpoint has
    it.

    A tied head is the embedding, or a table of its own in a format that cannot share one.
    """
    readers: dict[str, Callable[[], Tensor]] = {}
    for name in weights:
        readers[name] = functools.partial(weights.__getitem__, name)
        pieces: Sequence[Piece | QuantisedPiece] = checkpoint.tensors[name].pieces if name in checkpoint.tensors else ()
        if len(pieces) > 1 and name not in known:
            ends = list(itertools.accumulate(piece.shape[0] for piece in pieces))
            for piece, end in zip(pieces, ends, strict=True):
                readers[piece.name] = functools.partial(_rows, weights, name, end - piece.shape[0], end)
    readers.setdefault("lm_head.weight", functools.partial(weights.__getitem__, EMBEDDING))
    return WeightsOnDemand(readers)


def _rows(weights: Mapping[str, Tensor], name: str, start: int, end: int) -> Tensor:
    return weights[name][start:end]


def todays_spelling(content: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as transformers 5 reads it: no "su", and the original length beside the factors."""
    scaling = dict(rope_settings(content))
    if scaling.get("rope_type", scaling.get("type")) not in ("su", "longrope"):
        return dict(content)
    original = scaling.get("original_max_position_embeddings", content.get("original_max_position_embeddings"))
    scaling |= {"rope_type": "longrope", "type": "longrope", "original_max_position_embeddings": original}
    kept = {key: value for key, value in content.items() if key not in ("rope_scaling", "rope_parameters")}
    return kept | {"rope_scaling": scaling}


def open_reference(
    checkpoint: Checkpoint, weights: Mapping[str, Tensor], rounding: Rounding | None = None
) -> Reference:
    """The reference for this checkpoint's model_type, with these weights; one that rounds, if asked to."""
    from transformers import CONFIG_MAPPING

    reference = Transformers if checkpoint.config_content["model_type"] in CONFIG_MAPPING else FloatModule
    return reference(checkpoint, weights, rounding)
