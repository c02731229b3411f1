"""What lies between two attentions, lowered to XNNPACK: one piece of each kind, copied under other tensors' names.

Everything between two attentions is one delegate: the second half of a layer and the first half of the next. All such
pieces whose tensors have the same precisions are alike, so one is lowered and copied; lowering the whole graph costs a
time that grows with the square of the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from export.models.layers import Replace, leaves, replace_layers
from export.models.shape import Config, Layer, Model, on_meta
from export.scheme import Precision, Scheme
from export.to_executorch.internals import PlaceholderTags, copy_lowered, lower
from export.to_executorch.layers import export_layers
from export.to_executorch.sizes import LOGITS_ROWS, PREFILL_TOKENS

M = TypeVar("M", bound=nn.Module)


def by_head(x: Tensor, kv_heads: int) -> Tensor:
    """[1, tokens, heads, head_dim] -> [kv_heads, tokens, heads of each, head_dim], as attention takes it."""
    heads, head_dim = x.shape[2:]
    return torch.permute_copy(x.view(-1, kv_heads, heads // kv_heads, head_dim), (1, 0, 2, 3))


def by_token(attended: Tensor) -> Tensor:
    """[kv_heads, tokens, heads of each, head_dim] -> [1, tokens, heads * head_dim]."""
    kv_heads, _, heads, head_dim = attended.shape
    return torch.permute_copy(attended, (1, 0, 2, 3)).view(1, -1, kv_heads * heads * head_dim)


class First(nn.Module):
    """Before the first attention: (hidden, cos, sin) -> query, key, value, by head."""

    def __init__(self, layer: Layer, kv_heads: int) -> None:
        super().__init__()
        self.layer, self.kv_heads = layer, kv_heads

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return tuple(by_head(part, self.kv_heads) for part in self.layer.before_attention(hidden, (cos, sin)))


class Between(nn.Module):
    """Between two attentions: (hidden, attended, cos, sin) -> hidden, query, key, value; all but hidden by head."""

    def __init__(self, before: Layer, after: Layer, kv_heads: int) -> None:
        super().__init__()
        self.before, self.first = before, First(after, kv_heads)

    def forward(self, hidden: Tensor, attended: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        hidden = self.before.after_attention(hidden, by_token(attended))
        return hidden, *self.first(hidden, cos, sin)


class Last(nn.Module):
    """After the last attention, for the tokens that get logits: (hidden, attended) -> logits."""

    def __init__(self, layer: Layer, model: Model) -> None:
        super().__init__()
        self.layer, self.model = layer, model

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        return self.model.head(self.layer.after_attention(hidden, by_token(attended)))


def only_what_runs(model: M, run: Callable[[M], object], replace: Replace, path: str = "") -> M:
    """Put export layers in the place of the layers that `run` calls, and nothing in the place of all others."""
    called: set[str] = set()
    for name, layer in leaves(model):
        layer.register_forward_pre_hook(lambda _module, _inputs, name=name: called.add(name))
    run(model)
    unused = {f"{path}.{name}" if path else name for name, _ in leaves(model) if name not in called}
    replace_layers(model, lambda name, layer: nn.Identity() if name in unused else replace(name, layer), path)
    return model


@dataclass
class Pieces:
    """Makes a model's pieces, each half of a layer under the path that its tensors are to be named after."""

    config: Config
    scheme: Scheme

    def before_attention(self, tags: PlaceholderTags, path: str, number: int) -> Layer:
        """Layer `number`, which can only do its first half."""
        hidden = self.hidden()
        return self.half(tags, path, number, lambda layer: layer.before_attention(hidden, None))

    def after_attention(self, tags: PlaceholderTags, path: str, number: int) -> Layer:
        """Layer `number`, which can only do its second half."""
        hidden = self.hidden()
        return self.half(tags, path, number, lambda layer: layer.after_attention(hidden, hidden))

    def half(self, tags: PlaceholderTags, path: str, number: int, run: Callable[[Layer], object]) -> Layer:
        layer = next(iter(on_meta(self.config).decoder_layers()))
        scheme = replace(self.scheme, overrides=self.overrides(number, path))
        return only_what_runs(layer, run, export_layers(tags, self.config, scheme), path)

    def overrides(self, number: int, path: str) -> dict[str, Precision]:
        """The precisions that layer `number`'s tensors have of their own, by the names that they have under `path`."""
        own = f"model.layers.{number}."
        return {
            f"{path}.{name.removeprefix(own)}": precision
            for name, precision in self.scheme.overrides.items()
            if name.startswith(own)
        }

    def head(self, tags: PlaceholderTags) -> Model:
        """A model that can only make logits."""
        hidden, replace = self.hidden(), export_layers(tags, self.config, self.scheme)
        return only_what_runs(on_meta(self.config), lambda model: model.head(hidden), replace)

    def embedding(self, tags: PlaceholderTags) -> Model:
        """A model that can only embed, and finish logits."""
        ids = torch.zeros(1, 1, dtype=torch.int64, device="meta")
        logits = torch.empty(1, self.config.vocab_size, device="meta")
        replace = export_layers(tags, self.config, self.scheme)
        return only_what_runs(
            on_meta(self.config), lambda model: (model.embed(ids), model.after_logits(logits)), replace
        )

    def hidden(self) -> Tensor:
        return torch.empty(1, 1, self.config.hidden_size, device="meta")

    def lowered(self) -> list[nn.Module]:
        """First, the pieces between attentions, and last."""
        config, count = self.config, self.config.num_hidden_layers

        kv_heads = config.num_key_value_heads
        queries = config.num_attention_heads // kv_heads

        def heads(hidden: Tensor) -> list[Tensor]:
            return [
                hidden.new_empty(kv_heads, hidden.shape[1], of_each, config.head_dim) for of_each in (queries, 1, 1)
            ]

        tags = PlaceholderTags()
        first = self.lower(First(self.before_attention(tags, "model.layers.0", 0), kv_heads), "hrr")
        pieces = [copy_lowered(first, tags, {}, lambda hidden, *_: heads(hidden))]
        kinds: dict[str, tuple[Any, PlaceholderTags]] = {}  # by the precisions of their tensors
        for n in range(1, count):
            kind = repr((self.overrides(n - 1, "before"), self.overrides(n, "after")))
            if kind not in kinds:
                tags = PlaceholderTags()
                between = Between(
                    self.after_attention(tags, "before", n - 1), self.before_attention(tags, "after", n), kv_heads
                )
                kinds[kind] = self.lower(between, "harr"), tags
            rename = {"before.": f"model.layers.{n - 1}.", "after.": f"model.layers.{n}."}

            def shapes(hidden: Tensor, *_: Tensor) -> list[Tensor]:
                return [torch.empty_like(hidden), *heads(hidden)]

            pieces.append(copy_lowered(*kinds[kind], rename, shapes))
        tags = PlaceholderTags()
        finish = self.after_attention(tags, f"model.layers.{count - 1}", count - 1)
        last = self.lower(Last(finish, self.head(tags)), "ha", most=LOGITS_ROWS)

        def logits(hidden: Tensor, _: Tensor) -> list[Tensor]:
            return [hidden.new_empty(1, hidden.shape[1], config.vocab_size)]

        pieces.append(copy_lowered(last, tags, {}, logits))
        return pieces

    def lower(self, piece: nn.Module, inputs: str, *, most: int = PREFILL_TOKENS) -> Any:
        """A piece -> a lowered module for up to `most` tokens. `inputs`: h a hidden state, a what an
        attention gave, r a rotation."""
        config, half = self.config, self.config.rope.rotary_dim // 2
        kv_heads = config.num_key_value_heads
        attended = (kv_heads, 3, config.num_attention_heads // kv_heads, config.head_dim)
        sizes = {"h": (1, 3, config.hidden_size), "a": attended, "r": (1, 3, 1, half)}
        tokens = torch.export.Dim("tokens", min=1, max=most)
        return lower(piece, tuple(torch.zeros(sizes[kind]) for kind in inputs), tuple({1: tokens} for _ in inputs))
