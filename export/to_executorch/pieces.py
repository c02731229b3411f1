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


class First(nn.Module):
    """Before the first attention: (hidden, cos, sin) -> query, key, value."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = self.layer.before_attention(hidden, (cos, sin))
        return result


class Between(nn.Module):
    """Between two attentions: (hidden, attended, cos, sin) -> hidden, query, key, value."""

    def __init__(self, before: Layer, after: Layer) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, hidden: Tensor, attended: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        hidden = self.before.after_attention(hidden, attended)
        return hidden, *self.after.before_attention(hidden, (cos, sin))


class Last(nn.Module):
    """After the last attention, for the tokens that get logits: (hidden, attended) -> logits."""

    def __init__(self, layer: Layer, model: Model) -> None:
        super().__init__()
        self.layer, self.model = layer, model

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        return self.model.head(self.layer.after_attention(hidden, attended))


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

        def heads(hidden: Tensor) -> list[Tensor]:
            counts = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
            return [hidden.new_empty(1, hidden.shape[1], heads, config.head_dim) for heads in counts]

        tags = PlaceholderTags()
        first = self.lower(First(self.before_attention(tags, "model.layers.0", 0)), "hrr")
        pieces = [copy_lowered(first, tags, {}, lambda hidden, *_: heads(hidden))]
        kinds: dict[str, tuple[Any, PlaceholderTags]] = {}  # by the precisions of their tensors
        for n in range(1, count):
            kind = repr((self.overrides(n - 1, "before"), self.overrides(n, "after")))
            if kind not in kinds:
                tags = PlaceholderTags()
                between = Between(self.after_attention(tags, "before", n - 1), self.before_attention(tags, "after", n))
                kinds[kind] = self.lower(between, "hhrr"), tags
            rename = {"before.": f"model.layers.{n - 1}.", "after.": f"model.layers.{n}."}

            def shapes(hidden: Tensor, *_: Tensor) -> list[Tensor]:
                return [torch.empty_like(hidden), *heads(hidden)]

            pieces.append(copy_lowered(*kinds[kind], rename, shapes))
        tags = PlaceholderTags()
        finish = self.after_attention(tags, f"model.layers.{count - 1}", count - 1)
        last = self.lower(Last(finish, self.head(tags)), "hh", most=LOGITS_ROWS)

        def logits(hidden: Tensor, _: Tensor) -> list[Tensor]:
            return [hidden.new_empty(1, hidden.shape[1], config.vocab_size)]

        pieces.append(copy_lowered(last, tags, {}, logits))
        return pieces

    def lower(self, piece: nn.Module, inputs: str, *, most: int = PREFILL_TOKENS) -> Any:
        """A piece -> a lowered module for up to `most` tokens. `inputs`: h a hidden state, r a rotation."""
        half = self.config.rope.rotary_dim // 2
        sizes = {"h": (1, 3, self.config.hidden_size), "r": (1, 3, 1, half)}
        tokens = torch.export.Dim("tokens", min=1, max=most)
        return lower(piece, tuple(torch.zeros(sizes[kind]) for kind in inputs), tuple({1: tokens} for _ in inputs))
