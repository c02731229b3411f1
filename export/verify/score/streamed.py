"""The float model over many blocks, with one layer's weights in memory at a time.

Every block goes through a layer before the next layer is read, so that the checkpoint is read once and memory contains
one layer in float32 (before the first the embedding, after the last the head) and the blocks' hidden states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from export.checkpoint.open import Checkpoint
from export.models.attention import Cached, attend
from export.models.shape import EMBEDDING, Model, Step, on_meta
from export.verify.score.blocks import Block
from export.verify.score.losses import Rows

LayerDone = Callable[[int, int], None]  # layers done, of how many
TIED_HEAD = "lm_head.weight"


class StreamedReference:
    """A checkpoint's logits for every block, in float32. One pass over the blocks reads the checkpoint once."""

    name = "our float module, a layer at a time"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @torch.inference_mode()
    def rows(self, blocks: Sequence[Block], done: LayerDone) -> Iterator[Rows]:
        """The logits [predicted tokens, vocab] of one block after the other; all layers run before the first."""
        model = on_meta(self._checkpoint.config)
        groups = layer_names(model)
        tensors = self._checkpoint.tensors
        outer = {name for name in tensors if not any(name in group for group in groups)}
        # Never both tables at once; with a tied head the embedding is read again.
        at_end = outer - {EMBEDDING} | ({TIED_HEAD} if TIED_HEAD not in tensors else set())
        # A block is read to its last token but one: nothing follows the last.
        steps = [self._steps(model, len(block.ids) - 1) for block in blocks]
        values = [torch.tensor([list(block.ids[:-1])]) for block in blocks]
        for number, names in enumerate([{EMBEDDING}, *groups]):
            done(number, len(groups))
            with self._loaded(model, names):
                for index, value in enumerate(values):
                    values[index] = steps[index][number](value)
        with self._loaded(model, at_end):
            for block, value, own in zip(blocks, values, steps, strict=True):
                logits: Rows = own[-1](value[:, block.first - 1 :])[0].numpy()
                yield logits

    @contextlib.contextmanager
    def _loaded(self, model: Model, names: Iterable[str]) -> Iterator[None]:
        """These weights are in the model, and are forgotten afterwards."""
        tensors = self._checkpoint.tensors
        weights = {name: tensors[name if name in tensors else EMBEDDING].read() for name in names}
        model.load_state_dict(weights, strict=False, assign=True)
        yield
        empty = {name: torch.empty_like(weight, device="meta") for name, weight in weights.items()}
        model.load_state_dict(empty, strict=False, assign=True)

    def _steps(self, model: Model, count: int) -> list[Step]:
        config = self._checkpoint.config
        long = config.rope.type == "longrope" and count > config.rope.original_context_tokens
        cos, sin = (torch.from_numpy(table) for table in config.rope.tables(count, long=long))
        total = torch.tensor([count], dtype=torch.int32)
        empty = torch.empty(1, config.num_key_value_heads, count, config.head_dim)

        def one_layer(layer: int, qkv: Tensor) -> Tensor:
            return attend(config.attention(layer), Cached(qkv, empty, empty, total - 1, total, cos, sin))[0]

        return model.stages(one_layer)


def layer_names(model: Model) -> list[set[str]]:
    """The names of each decoder layer's weights, in the order of the layers."""
    paths = {id(module): path for path, module in model.named_modules()}
    return [{f"{paths[id(layer)]}.{name}" for name, _ in layer.named_parameters()} for layer in model.decoder_layers()]
