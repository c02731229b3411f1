"""The model -> one ExecuTorch program (.pte) that the stock text runner loads unchanged.

Everything between two attentions is one XNNPACK delegate: the second half of a layer and the first half of the next.
All such pieces are alike, so one is lowered and copied under new keys; lowering the whole graph costs a time that
grows with the square of the layers. Weights are named data: the program is laid out with hollow blocks of the right
lengths, the stream fills them in the file, and the keys, which depend on the bytes, are put in last.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.coverage import Coverage, executorch_coverage
from export.executorch_layers import (
    DynamicLinear,
    Finish,
    FloatLinear,
    Marks,
    Norm,
    Project,
    QuantisedEmbedding,
    gate_up_rows,
    make_linear,
    qkv_rows,
)
from export.models.phi3 import EMBEDDING, Phi3Config
from export.scheme import Scheme
from export.slots import ITEM_BITS, Slot

PROGRAM_FILE = "model.pte"
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


@dataclass(frozen=True)
class Program:
    """A laid-out program: the bytes that are not weights, by offset, and the slots between them.

    A tensor whose rows were parted (`tensor#part`) is in `spread`: where its bytes go, in order.
    """

    fixed: Mapping[int, bytes]
    slots: Mapping[str, Slot]
    spread: Mapping[str, Sequence[tuple[str, int]]]
    size: int
    coverage: Coverage

    def finish(self, path: Path, digests: Mapping[str, str]) -> None:
        """Write what is not weights around the streamed slots, with keys made from the slots' digests.

        XNNPACK shares packed weights between programs by key, so equal keys must mean equal bytes.
        """
        keys = {provisional_key(name): content_key(name, digest) for name, digest in digests.items()}
        pattern = re.compile(b"[0-9a-f]{64}")

        def final(match: re.Match[bytes]) -> bytes:
            return keys.get(match[0].decode(), match[0].decode()).encode()

        with path.open("r+b") as file:
            for offset, data in self.fixed.items():
                file.seek(offset)
                file.write(pattern.sub(final, data))
            file.truncate(self.size)


def provisional_key(slot: str) -> str:
    """The key that a slot's named data has until its bytes are known: as long as the final one."""
    return hashlib.sha256(f"slot {slot}".encode()).hexdigest()


def content_key(slot: str, digest: str) -> str:
    """The final key. The name is in it because a program may not hold one key twice (two norms may be equal)."""
    return hashlib.sha256(f"{slot} {digest}".encode()).hexdigest()


class First(nn.Module):
    """Before the first attention: (hidden, cos, sin) -> query, key, value."""

    def __init__(self, project: Project) -> None:
        super().__init__()
        self.project = project

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = self.project(hidden, cos, sin)
        return result


class Between(nn.Module):
    """Between two attentions: (hidden, attended, cos, sin) -> hidden, query, key, value."""

    def __init__(self, finish: Finish, project: Project) -> None:
        super().__init__()
        self.finish, self.project = finish, project

    def forward(self, hidden: Tensor, attended: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        hidden = self.finish(hidden, attended)
        return hidden, *self.project(hidden, cos, sin)


class Last(nn.Module):
    """After the last attention, for one token: (hidden, attended) -> logits."""

    def __init__(self, finish: Finish, norm: Norm, lm_head: DynamicLinear | FloatLinear) -> None:
        super().__init__()
        self.finish, self.norm, self.lm_head = finish, norm, lm_head

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.norm(self.finish(hidden, attended)))
        return logits


@dataclass
class Lowering:
    """Lowers pieces to XNNPACK, and makes copies of a lowered piece under other tensors' names."""

    config: Phi3Config
    scheme: Scheme
    lengths: dict[str, int] = field(default_factory=dict)  # slot -> bytes

    def lower(self, piece: nn.Module, inputs: str, *, one_token: bool = False) -> Any:
        """A module of stand-ins -> a lowered module: one delegate, whole. `inputs`: h a hidden state, r a rotation."""
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
        return to_backend(XnnpackBackend.__name__, edge.exported_program(), [])

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


class Runner(nn.Module):
    """The whole program: forward(tokens int64 [1, n], start_pos int64 [1]) -> logits float32 [1, vocab].

    The KV cache is its state: [1, context, kv_heads, head_dim] for keys and for values of each layer.

    Where a sequence may outgrow long rope's short factors, a call takes the long ones if it reaches beyond
    `original_context_tokens`, or if start_pos is counted from `context_tokens` on: so the first pieces of a long prompt
    say that they are long. The stock runner never does, and is told the original length as the context.
    """

    def __init__(self, config: Phi3Config, embedding: nn.Module, pieces: list[nn.Module], context_tokens: int) -> None:
        super().__init__()
        self.config, self.context_tokens = config, context_tokens
        self.embedding, self.pieces = embedding, nn.ModuleList(pieces)
        for layer in range(config.num_hidden_layers):
            for part in ("key", "value"):
                cache = torch.zeros(1, context_tokens, config.num_key_value_heads, config.head_dim)
                self.register_buffer(f"{part}_{layer}", cache, persistent=False)
        for name, table in zip(("cos", "sin"), config.rope.stacked_tables(context_tokens), strict=True):
            self.register_buffer(name, torch.from_numpy(table)[None, :, None], persistent=False)

    def forward(self, tokens: Tensor, start_pos: Tensor) -> Tensor:
        config, count = self.config, tokens.shape[1]
        if config.rope.switches(self.context_tokens):
            original = config.rope.original_context_tokens
            told = start_pos >= self.context_tokens
            start_pos = torch.where(told, start_pos - self.context_tokens, start_pos)
            long = torch.logical_or(told, start_pos + count > original)
            start = self.number(start_pos, count, self.context_tokens)
            row = self.number(torch.where(long, start_pos + original, start_pos), count, self.context_tokens + original)
        else:
            start = row = self.number(start_pos, count, self.context_tokens)
        cos, sin = (torch.narrow(self.get_buffer(name), 1, row, count) for name in ("cos", "sin"))
        mask = None
        if config.sliding_window and config.sliding_window < self.context_tokens:
            mask = self.window_mask(start, count)
        hidden = self.embedding(tokens)
        query, key, value = self.pieces[0](hidden, cos, sin)
        for layer in range(config.num_hidden_layers):
            cached_key, cached_value = self.get_buffer(f"key_{layer}"), self.get_buffer(f"value_{layer}")
            torch.ops.llama.update_cache(key, cached_key, start)
            torch.ops.llama.update_cache(value, cached_value, start)
            attended = torch.ops.llama.custom_sdpa(query, cached_key, cached_value, start, mask, 0.0, mask is None)
            attended = attended.flatten(2)
            if layer + 1 < config.num_hidden_layers:
                hidden, query, key, value = self.pieces[layer + 1](hidden, attended, cos, sin)
        (logits,) = self.pieces[-1](hidden[:, -1:], attended[:, -1:])
        return logits[:, -1]  # type: ignore[no-any-return]

    @staticmethod
    def number(start: Tensor, count: Any, end: int) -> Any:
        """A tensor's one number, from which `count` on stays below `end`."""
        value = start[-1].item()
        for holds in (value >= 0, value < end, value + count <= end):
            torch._check(holds)  # type: ignore[no-untyped-call]
        return value

    def window_mask(self, start: Any, count: Any) -> Tensor:
        """0 where a key is seen, -inf elsewhere: [tokens, context]."""
        query = torch.arange(count)[:, None] + start
        key = torch.arange(self.context_tokens)[None, :]
        assert self.config.sliding_window
        seen = (key <= query) & (key > query - self.config.sliding_window)
        return torch.where(seen, 0.0, float("-inf"))


def build(config: Phi3Config, scheme: Scheme, *, context_tokens: int, bos: int | None, stop: list[int]) -> Program:
    """Lower one piece of each kind, compose the program from copies, and lay it out."""
    with quiet(), torch.no_grad():
        import executorch.exir.passes._quant_patterns_and_replacements
        import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401  (registers llama::*)

        lowering = Lowering(config, scheme)
        pieces = lower_pieces(lowering)
        marks = Marks()
        embedding = QuantisedEmbedding(marks, EMBEDDING, config, scheme)
        manager = compose(Runner(config, embedding, pieces, context_tokens), context_tokens, bos, stop)
    program = manager.executorch_program
    for buffer in program.constant_buffer:
        if (owner := marks.owner(buffer.storage)) is not None:
            lowering.lengths[owner] = len(buffer.storage)
            buffer.storage = Hollow(owner, len(buffer.storage))
    return lay_out_program(program, manager._named_data, config, scheme)


def lower_pieces(lowering: Lowering) -> list[nn.Module]:
    """First, the pieces between attentions, and last."""
    config, scheme = lowering.config, lowering.scheme
    count = config.num_hidden_layers

    def heads(hidden: Tensor) -> list[Tensor]:
        counts = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        return [hidden.new_empty(1, hidden.shape[1], heads, config.head_dim) for heads in counts]

    marks = Marks()
    first = lowering.lower(First(Project(marks, "model.layers.0", config, scheme)), "hrr")
    pieces = [lowering.place(first, marks, {}, lambda hidden, *_: heads(hidden))]
    if count > 1:
        marks = Marks()
        finish, project = Finish(marks, "before", config, scheme), Project(marks, "after", config, scheme)
        between = lowering.lower(Between(finish, project), "hhrr")
        for n in range(1, count):
            rename = {"before.": f"model.layers.{n - 1}.", "after.": f"model.layers.{n}."}
            pieces.append(
                lowering.place(between, marks, rename, lambda hidden, *_: [torch.empty_like(hidden), *heads(hidden)])
            )
    marks = Marks()
    finish = Finish(marks, f"model.layers.{count - 1}", config, scheme)
    norm = Norm(marks, "model.norm.weight", config.hidden_size, config.rms_norm_eps)
    head = make_linear(marks, "lm_head.weight", config.vocab_size, config.hidden_size, scheme)
    last = lowering.lower(Last(finish, norm, head), "hh", one_token=True)
    pieces.append(lowering.place(last, marks, {}, lambda hidden, _: [hidden.new_empty(1, 1, config.vocab_size)]))
    return pieces


def compose(runner: Runner, context_tokens: int, bos: int | None, stop: list[int]) -> Any:
    """Trace the runner around its delegates and give it the constant methods that the stock text runner asks for."""
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    prefill, rope = min(PREFILL_TOKENS, context_tokens), runner.config.rope
    original = rope.original_context_tokens
    example = (torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    tokens = torch.export.Dim("tokens", min=1, max=prefill)
    program = torch.export.export(runner.eval(), example, dynamic_shapes=({1: tokens}, None), strict=False)
    methods = {
        "get_bos_id": -1 if bos is None else bos,
        "get_eos_ids": list(stop),
        "get_max_seq_len": prefill,
        # The stock runner cannot say that a prompt is long, nor prefill again: it ends where the short factors do.
        "get_max_context_len": original if rope.switches(context_tokens) else context_tokens,
        "get_n_layers": runner.config.num_hidden_layers,
        "get_vocab_size": runner.config.vocab_size,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    edge = to_edge(
        program,
        constant_methods=methods,
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    return edge.to_executorch(
        ExecutorchBackendConfig(
            extract_delegate_segments=True,
            do_quant_fusion_and_const_prop=False,
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
        )
    )


def lay_out_program(program: Any, named_data: Any, config: Phi3Config, scheme: Scheme) -> Program:
    """Serialise with hollow blocks, and note where each block and each run of other bytes lies."""
    from executorch.exir._serialize._program import PTEFile, serialize_pte_binary

    cord = serialize_pte_binary(PTEFile(program=program, named_data=named_data), extract_delegate_segments=True)
    fixed: dict[int, bytes] = {}
    slots: dict[str, Slot] = {}
    offset = 0
    for block in cord._buffers:
        if isinstance(block, Hollow):
            dtype = slot_dtype(block.slot, scheme)
            shape = (block.length * 8 // ITEM_BITS[dtype],)
            even_high = block.slot.startswith(EMBEDDING)
            slots[block.slot] = Slot(block.slot, dtype, shape, offset, PROGRAM_FILE, even_high)
        else:
            fixed[offset] = bytes(block)
        offset += len(block)
    return Program(fixed, slots, spread_rows(slots, config), offset, executorch_coverage(program))


def spread_rows(slots: Mapping[str, Slot], config: Phi3Config) -> dict[str, list[tuple[str, int]]]:
    """Where the bytes of the tensors go whose rows were parted: tensor -> (slot, bytes) from the first row on."""
    parted = {"self_attn.qkv_proj.weight": qkv_rows(config), "mlp.gate_up_proj.weight": gate_up_rows(config)}
    spread: dict[str, list[tuple[str, int]]] = {}
    for n in range(config.num_hidden_layers):
        for name, rows in parted.items():
            total = {part: sum(count for other, count in rows if other == part) for part, _ in rows}
            for suffix in ("", "_q", "_scales"):
                tensor = f"model.layers.{n}.{name}"
                places = {part: f"{tensor}#{part}{suffix}" for part in total}
                if places[rows[0][0]] in slots:
                    spread[f"{tensor}{suffix}"] = [
                        (places[part], slots[places[part]].length // total[part] * count) for part, count in rows
                    ]
    return spread


def slot_dtype(name: str, scheme: Scheme) -> str:
    """How a slot's bytes are to be read. Its shape is kept flat: only the length matters in a program file."""
    embedding = name.startswith(EMBEDDING)
    if name.endswith("_scales"):
        return "float32" if embedding else "bfloat16"
    if name.endswith("_q"):
        return "int8" if embedding and scheme.embedding_bits == 8 else "uint8"
    return "float32"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ExecuTorch's lowering warns and logs about itself; none of it is about the user's model."""
    root = logging.getLogger()
    level = root.level
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.setLevel(level)
