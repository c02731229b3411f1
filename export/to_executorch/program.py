"""The model -> one ExecuTorch program (.pte) that the stock text runner loads unchanged.

Weights are named data: the program is laid out with placeholders of the right lengths, the stream fills them in the
file, and the keys, which depend on the bytes, are put in last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from export.coverage import Coverage, executorch_coverage
from export.models.layers import SplitLinear, leaves
from export.models.shape import EMBEDDING, Config, on_meta
from export.scheme import Scheme
from export.to_executorch.internals import (
    PlaceholderBytes,
    PlaceholderTags,
    hide_constants,
    key_replacer,
    serialised,
)
from export.to_executorch.layers import part_rows, part_sizes
from export.to_executorch.pieces import Pieces
from export.to_executorch.quiet import quiet
from export.to_executorch.runner import Runner
from export.to_executorch.shortcuts import one_removal, unchecked_branches
from export.to_executorch.sizes import PREFILL_TOKENS
from export.weights.slots import DTYPES, SUFFIXES, Interleaved, Slot, SlotId, Slots

PROGRAM_FILE = "model.pte"


@dataclass(frozen=True)
class Program:
    """A laid-out program: the bytes that are not weights, by offset, and the slots between them."""

    fixed: Mapping[int, bytes]
    slots: Slots
    interleaved: Interleaved
    size: int
    coverage: Coverage

    def finish(self, path: Path, digests: Mapping[SlotId, str]) -> None:
        """Write what is not weights around the streamed slots, with keys made from the slots' digests."""
        with_final_keys = key_replacer(digests)
        with path.open("r+b") as file:
            for offset, data in self.fixed.items():
                file.seek(offset)
                file.write(with_final_keys(data))
            file.truncate(self.size)


def build(
    config: Config, scheme: Scheme, *, context_tokens: int, ring_tokens: int | None, bos: int | None, stop: list[int]
) -> Program:
    """Lower one piece of each kind, compose the program from copies, and lay it out."""
    with quiet(), torch.no_grad():
        import executorch.exir.passes._quant_patterns_and_replacements
        import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401  (registers llama::*)

        pieces, tags = Pieces(config, scheme), PlaceholderTags()
        lowered = pieces.lowered()
        runner = Runner(config, pieces.embedding(tags), lowered, context_tokens, ring_tokens)
        with unchecked_branches(), one_removal():
            manager = compose(runner, context_tokens, bos, stop)
    hide_constants(manager.executorch_program, tags)
    return lay_out_program(manager, config, scheme)


def compose(runner: Runner, context_tokens: int, bos: int | None, stop: list[int]) -> Any:
    """Trace the runner around its delegates and give it the constant methods that the stock text runner asks for."""
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    prefill, rope = min(PREFILL_TOKENS, context_tokens), runner.config.rope
    original = rope.original_context_tokens
    example = (torch.zeros(1, min(3, prefill), dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
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


def lay_out_program(manager: Any, config: Config, scheme: Scheme) -> Program:
    """Serialise with placeholders, and note where each block and each run of other bytes lies."""
    fixed: dict[int, bytes] = {}
    slots: dict[SlotId, Slot] = {}
    size = 0
    for offset, block in serialised(manager):
        if isinstance(block, PlaceholderBytes):
            slots[block.slot] = slot_for(block, offset, scheme)
        else:
            fixed[offset] = block
        size = offset + len(block)
    coverage = executorch_coverage(manager.executorch_program)
    return Program(fixed, slots, interleave(slots, config), size, coverage)


def slot_for(block: PlaceholderBytes, offset: int, scheme: Scheme) -> Slot:
    """How a slot's bytes are to be read. Its shape is kept flat: only the length matters in a program file."""
    id, embedding, bits = block.slot, block.slot.tensor == EMBEDDING, None
    dtype = "float32"
    precision = scheme.precision(id.tensor)
    if id.kind == "scales" and precision and precision.bits == 4 and not embedding:
        dtype = "bfloat16"
    if id.kind == "codes" and precision:
        bits = precision.bits
        dtype = "int8" if bits == 8 else "uint8"
    shape = (block.length // DTYPES[dtype].itemsize,)
    return Slot(id, dtype, shape, offset, PROGRAM_FILE, bits=bits, even_high=embedding)


def interleave(slots: Slots, config: Config) -> Interleaved:
    """Where the bytes of the tensors go whose rows belong to parts."""
    interleaved: dict[SlotId, Sequence[tuple[SlotId, int]]] = {}
    for path, layer in leaves(on_meta(config)):
        if not isinstance(layer, SplitLinear):
            continue
        rows = part_rows(layer, config.rope.rotary_dim)
        sizes = part_sizes(layer, rows)
        for whole in (SlotId(f"{path}.{name}", kind) for name in ("weight", "bias") for kind in SUFFIXES):
            parts = {part: replace(whole, part=part) for part in sizes}
            if all(id in slots for id in parts.values()):
                row_bytes = {part: slots[id].length // sizes[part] for part, id in parts.items()}
                interleaved[whole] = [(parts[part], row_bytes[part] * count) for part, count in rows]
    return interleaved
