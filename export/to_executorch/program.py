"""The model -> one ExecuTorch program (.pte) that the stock text runner loads unchanged.

Weights are named data: the program is laid out with hollow blocks of the right lengths, the stream fills them in the
file, and the keys, which depend on the bytes, are put in last.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.coverage import Coverage, executorch_coverage
from export.models.phi3 import Phi3Config
from export.models.phi3small import Phi3SmallConfig
from export.models.shape import EMBEDDING, Config, Rows
from export.scheme import Scheme
from export.to_executorch.layers import Marks, QuantisedEmbedding
from export.to_executorch.lowering import PREFILL_TOKENS, Hollow, Lowering, lower_pieces, provisional_key
from export.to_executorch.phi3 import Phi3StandIns
from export.to_executorch.phi3small import Phi3SmallStandIns
from export.to_executorch.runner import Runner, StandIns
from export.weights.slots import ITEM_BITS, Slot

PROGRAM_FILE = "model.pte"


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


def content_key(slot: str, digest: str) -> str:
    """The final key. The name is in it because a program may not hold one key twice (two norms may be equal)."""
    return hashlib.sha256(f"{slot} {digest}".encode()).hexdigest()


def stand_ins_for(config: Config, scheme: Scheme) -> StandIns:
    """The model's layers in the form that ExecuTorch lowers."""
    if isinstance(config, Phi3SmallConfig):
        return Phi3SmallStandIns(config, scheme)
    assert isinstance(config, Phi3Config)
    return Phi3StandIns(config, scheme)


def build(config: Config, scheme: Scheme, *, context_tokens: int, bos: int | None, stop: list[int]) -> Program:
    """Lower one piece of each kind, compose the program from copies, and lay it out."""
    with quiet(), torch.no_grad():
        import executorch.exir.passes._quant_patterns_and_replacements
        import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401  (registers llama::*)

        stand_ins = stand_ins_for(config, scheme)
        lowering = Lowering(config, stand_ins)
        pieces = lower_pieces(lowering)
        marks = Marks()
        embedding = QuantisedEmbedding(marks, EMBEDDING, config, scheme)
        manager = compose(Runner(config, stand_ins, embedding, pieces, context_tokens), context_tokens, bos, stop)
    program = manager.executorch_program
    for buffer in program.constant_buffer:
        if (owner := marks.owner(buffer.storage)) is not None:
            lowering.lengths[owner] = len(buffer.storage)
            buffer.storage = Hollow(owner, len(buffer.storage))
    return lay_out_program(program, manager._named_data, config, stand_ins, scheme)


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


def lay_out_program(program: Any, named_data: Any, config: Config, stand_ins: StandIns, scheme: Scheme) -> Program:
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
    return Program(fixed, slots, spread_rows(slots, config, stand_ins.parted()), offset, executorch_coverage(program))


def spread_rows(
    slots: Mapping[str, Slot], config: Config, parted: Mapping[str, Rows]
) -> dict[str, Sequence[tuple[str, int]]]:
    """Where the bytes of the tensors go whose rows were parted: see WeightFile."""
    spread: dict[str, Sequence[tuple[str, int]]] = {}
    for tensor, shape in config.tensor_shapes().items():
        rows = next((rows for end, rows in parted.items() if tensor.rpartition(".")[0].endswith(end)), [])
        for suffix in ("", "_q", "_scales"):
            if not rows or f"{tensor}#{rows[0][0]}{suffix}" not in slots:
                continue
            times, pieces = shape[0] // sum(count for _, count in rows), []
            for part, count in rows:
                total = times * sum(number for other, number in rows if other == part)
                slot = slots[f"{tensor}#{part}{suffix}"]
                pieces.append((slot.name, slot.length // total * count))
            spread[f"{tensor}{suffix}"] = pieces
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
