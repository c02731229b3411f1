"""What lies between two attentions, lowered to XNNPACK: one piece of each kind, copied under other tensors' names.

Everything between two attentions is one delegate: the second half of a layer and the first half of the next. All such
pieces are alike, so one is lowered and copied; lowering the whole graph costs a time that grows with the square of the
layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from export.models.shape import Config
from export.to_executorch.layers import Marks
from export.to_executorch.runner import StandIns

# Tokens of one forward call. The runner cuts a longer prompt into pieces of this size.
PREFILL_TOKENS = 512


class Hollow(bytes):
    """Stands for a slot's bytes while the program is laid out: it has their length, and holds only their name."""

    slot: str
    length: int

    def __new__(cls, slot: str, length: int) -> Hollow:
        self = super().__new__(cls, slot.encode())
        self.slot, self.length = slot, length
        return self

    def __len__(self) -> int:
        return self.length

    def __deepcopy__(self, memo: object) -> Hollow:
        return self


def provisional_key(slot: str) -> str:
    """The key that a slot's named data has until its bytes are known: as long as the final one."""
    return hashlib.sha256(f"slot {slot}".encode()).hexdigest()


class First(nn.Module):
    """Before the first attention: (hidden, cos, sin) -> query, key, value."""

    def __init__(self, project: nn.Module) -> None:
        super().__init__()
        self.project = project

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = self.project(hidden, cos, sin)
        return result


class Between(nn.Module):
    """Between two attentions: (hidden, attended, cos, sin) -> hidden, query, key, value."""

    def __init__(self, finish: nn.Module, project: nn.Module) -> None:
        super().__init__()
        self.finish, self.project = finish, project

    def forward(self, hidden: Tensor, attended: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        hidden = self.finish(hidden, attended)
        return hidden, *self.project(hidden, cos, sin)


class Last(nn.Module):
    """After the last attention, for one token: (hidden, attended) -> logits."""

    def __init__(self, finish: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.finish, self.head = finish, head

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        logits: Tensor = self.head(self.finish(hidden, attended))
        return logits


@dataclass
class Lowering:
    """Lowers pieces to XNNPACK, and makes copies of a lowered piece under other tensors' names."""

    config: Config
    stand_ins: StandIns
    lengths: dict[str, int] = field(default_factory=dict)  # slot -> bytes

    def lower(self, piece: nn.Module, inputs: str, *, one_token: bool = False) -> Any:
        """A module of stand-ins -> a lowered module: one delegate, whole. `inputs`: h a hidden state, r a rotation."""
        from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_dynamic_qdq, tag_as_implicit_q_dq
        from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
        from executorch.exir import EdgeCompileConfig, to_edge
        from executorch.exir.backend.backend_api import to_backend

        count = 1 if one_token else 3
        half = self.config.rope.rotary_dim // 2
        sizes = {"h": (1, count, self.config.hidden_size), "r": (1, count, 1, half)}
        tokens = torch.export.Dim("tokens", min=1, max=PREFILL_TOKENS)
        shapes = None if one_token else tuple({1: tokens} for _ in inputs)
        example = tuple(torch.zeros(sizes[kind]) for kind in inputs)
        program = torch.export.export(piece.eval(), example, dynamic_shapes=shapes, strict=False)
        # Linear layers are kept whole: decomposed, they become reshapes that XNNPACK does not take.
        edge = to_edge(
            program,
            compile_config=EdgeCompileConfig(
                _check_ir_validity=False, _skip_dim_order=True, preserve_ops=[torch.ops.aten.linear.default]
            ),
        )
        lowered = edge.exported_program()
        for node in lowered.graph.nodes:
            if is_dequant(node) and is_dynamic_qdq(node):
                tag_as_implicit_q_dq(node)  # as XNNPACK's partitioner does: without it a linear layer may have no bias
        return to_backend(XnnpackBackend.__name__, lowered, [])

    def place(self, lowered: Any, marks: Marks, rename: Mapping[str, str], shapes: Shapes) -> nn.Module:
        """A copy of a lowered piece whose named data are hollow and named after `rename`d tensors."""
        from executorch.exir._serialize._named_data_store import NamedDataStore
        from executorch.exir.lowered_backend_module import LoweredBackendModule

        processed, store = lowered.processed_bytes, NamedDataStore()
        data = lowered.named_data_store_output
        for key, entry in data.pte_data.items():
            block = data.buffers[entry.buffer_index]
            owner = marks.owner(block)
            if owner is None:
                store.add_named_data(key, block, entry.alignment)
                continue
            for old, new in rename.items():
                owner = owner.replace(old, new) if owner.startswith(old) else owner
            prefix, digest = key[:-64], key[-64:]
            processed = processed.replace(digest.encode(), provisional_key(owner).encode())
            store.add_named_data(prefix + provisional_key(owner), Hollow(owner, len(block)), entry.alignment)
            self.lengths[owner] = len(block)
        original = lowered.original_module

        class Described(LoweredBackendModule):  # type: ignore[misc]
            """Says its outputs' shapes itself. Stock, every pass over the program runs the piece's own graph again to
            learn them: 13 s instead of 7 s for 8 layers."""

            @property
            def original_module(self) -> Any:
                return Description(shapes, original.graph)

        Described.__name__ = LoweredBackendModule.__name__  # ExecuTorch knows its lowered modules by this name
        copy = Described(
            original, lowered.backend_id, processed, lowered.compile_specs, store.get_named_data_store_output()
        )
        copy.meta = {}
        assert isinstance(copy, nn.Module)
        return copy


Shapes = Callable[..., list[Tensor]]  # a piece's inputs -> its outputs, as shapes only


@dataclass(frozen=True)
class Description:
    """What ExecuTorch asks of a lowered module's original program."""

    shapes: Shapes
    graph: Any

    def module(self) -> Shapes:
        return self.shapes


def lower_pieces(lowering: Lowering) -> list[nn.Module]:
    """First, the pieces between attentions, and last."""
    config, stand_ins = lowering.config, lowering.stand_ins
    count = config.num_hidden_layers

    def heads(hidden: Tensor) -> list[Tensor]:
        counts = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        return [hidden.new_empty(1, hidden.shape[1], heads, config.head_dim) for heads in counts]

    marks = Marks()
    first = lowering.lower(First(stand_ins.project(marks, "model.layers.0")), "hrr")
    pieces = [lowering.place(first, marks, {}, lambda hidden, *_: heads(hidden))]
    if count > 1:
        marks = Marks()
        between = lowering.lower(Between(stand_ins.finish(marks, "before"), stand_ins.project(marks, "after")), "hhrr")
        for n in range(1, count):
            rename = {"before.": f"model.layers.{n - 1}.", "after.": f"model.layers.{n}."}
            pieces.append(
                lowering.place(between, marks, rename, lambda hidden, *_: [torch.empty_like(hidden), *heads(hidden)])
            )
    marks = Marks()
    finish = stand_ins.finish(marks, f"model.layers.{count - 1}")
    last = lowering.lower(Last(finish, stand_ins.head(marks)), "hh", one_token=True)
    pieces.append(lowering.place(last, marks, {}, lambda hidden, _: [hidden.new_empty(1, 1, config.vocab_size)]))
    return pieces
