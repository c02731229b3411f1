"""Everything of ExecuTorch's inside that an export relies on, checked by tests/test_export_executorch_internals.py.

ExecuTorch lowers a program with its weights in memory. To export with bounded memory, the weights are constants of a
known value here (PlaceholderTags), which are recognised in a lowered piece and replaced by PlaceholderBytes: those have
a length and a name, and no content. So a piece is lowered once and copied for each layer, the program is laid out
without a weight, and the stream writes the weights into its file. With stock calls alone, lowering Phi-3-mini held all
weights several times.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.scheme import EMBEDDING
from export.to_executorch.quiet import quiet
from export.to_executorch.shortcuts import few_passes
from export.weights.slots import SlotId

VERIFIED = "1.4.1"  # the version whose inside this module knows
# Of XNNPACK's 17 passes over a piece, the pieces need the one that makes linear layers. Each runs the graph again:
# together they took a third of an export of a small model. XNNPACK has this name from a partitioner of linear layers.
ONLY_LINEAR_LAYERS = "dqlinear_partitioner"

Shapes = Callable[..., list[Tensor]]  # a piece's inputs -> its outputs, as shapes only


class PlaceholderBytes(bytes):
    """In the place of a slot's bytes while the program is laid out: it has their length, and holds only their name.

    Where `elsewhere`, the program has the same bytes in another place: then it takes none itself.
    """

    slot: SlotId
    length: int
    elsewhere: bool

    def __new__(cls, slot: SlotId, length: int, *, elsewhere: bool = False) -> PlaceholderBytes:
        self = super().__new__(cls, str(slot).encode())
        self.slot, self.length, self.elsewhere = slot, 0 if elsewhere else length, elsewhere
        return self

    def __len__(self) -> int:
        return self.length

    def __deepcopy__(self, memo: object) -> PlaceholderBytes:
        return self


@dataclass
class PlaceholderTags:
    """Hands out constants in the place of weights, and recognises them again by their length and first bytes."""

    owners: dict[tuple[int, bytes], SlotId] = field(default_factory=dict)

    def floats(self, slot: SlotId, shape: tuple[int, ...], stored: torch.dtype = torch.float32) -> Tensor:
        """A float32 constant that will be stored as `stored`."""
        value = torch.tensor([1.0 + len(self.owners) / 64])  # exact in bf16
        self._claim(slot, shape, value.to(stored).view(torch.uint8).numpy().tobytes())
        return value.expand(shape).contiguous()

    def codes(self, slot: SlotId, shape: tuple[int, int]) -> Tensor:
        """int8 codes in -8..7 that will be stored two to a byte."""
        code = sum(owner.kind == "codes" for owner in self.owners.values())
        assert code < 16, "a piece has at most 16 quantised matrices"
        self._claim(slot, (shape[0], shape[1] // 2), bytes([code | code << 4]))
        return torch.full(shape, code - 8, dtype=torch.int8)

    def wide_codes(self, slot: SlotId, shape: tuple[int, int]) -> Tensor:
        """int8 codes that will be stored as they are."""
        low = sum(owner.kind == "codes" for owner in self.owners.values())
        assert low < 16, "a piece has at most 16 quantised matrices"
        code = torch.tensor([low << 4 | (low + 1) % 16], dtype=torch.uint8)  # unlike two equal codes of 4 bits
        self._claim(slot, shape, code.numpy().tobytes())
        return code.view(torch.int8).expand(shape).contiguous()

    def packed(self, slot: SlotId, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Codes of an embedding, as they are stored."""
        self._claim(slot, shape, bytes([7]))
        return torch.full(shape, 7, dtype=dtype)

    def _claim(self, slot: SlotId, shape: tuple[int, ...], item: bytes) -> None:
        length = torch.Size(shape).numel() * len(item)
        self.owners[length, (item * 4)[:4]] = slot

    def owner(self, data: bytes) -> SlotId | None:
        """The slot that these bytes are the constant of; None for a true constant."""
        return self.owners.get((len(data), data[:4]))


def provisional_key(slot: SlotId) -> str:
    """The key that a slot's named data has until its bytes are known: as long as the final one."""
    return hashlib.sha256(f"slot {slot}".encode()).hexdigest()


def content_key(slot: SlotId, digest: str) -> str:
    """The final key. The name is in it because a program may not hold one key twice (two norms may be equal)."""
    return hashlib.sha256(f"{slot} {digest}".encode()).hexdigest()


def key_replacer(digests: Mapping[SlotId, str]) -> Callable[[bytes], bytes]:
    """What puts the final keys in the place of the provisional ones, in any run of a program's bytes.

    XNNPACK shares packed weights between programs by key, so equal keys must mean equal bytes.
    """
    keys = {provisional_key(slot).encode(): content_key(slot, digest).encode() for slot, digest in digests.items()}
    return lambda data: re.sub(b"[0-9a-f]{64}", lambda match: keys.get(match[0], match[0]), data)


def lower(piece: nn.Module, example: tuple[Tensor, ...], shapes: Any) -> Any:
    """A module of export layers -> a lowered module: one XNNPACK delegate, whole. `shapes`: torch.export's."""
    from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_dynamic_qdq, tag_as_implicit_q_dq
    from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
    from executorch.exir import EdgeCompileConfig, to_edge
    from executorch.exir.backend.backend_api import to_backend
    from executorch.exir.backend.compile_spec_schema import CompileSpec

    program = torch.export.export(piece.eval(), example, dynamic_shapes=shapes, strict=False)
    # Linear layers are kept whole: decomposed, they become reshapes that XNNPACK does not take.
    config = EdgeCompileConfig(
        _check_ir_validity=False, _skip_dim_order=True, preserve_ops=[torch.ops.aten.linear.default]
    )
    with few_passes():
        edge = to_edge(program, compile_config=config)
    lowered = edge.exported_program()
    for node in lowered.graph.nodes:
        if is_dequant(node) and is_dynamic_qdq(node):
            tag_as_implicit_q_dq(node)  # as XNNPACK's partitioner does: without it a linear layer may have no bias
    return to_backend(XnnpackBackend.__name__, lowered, [CompileSpec(ONLY_LINEAR_LAYERS, b"")])


def copy_lowered(lowered: Any, tags: PlaceholderTags, rename: Mapping[str, str], shapes: Shapes) -> nn.Module:
    """A copy of a lowered piece with PlaceholderBytes for its weights, named after `rename`d tensors (by the beginning
    of their names)."""
    from executorch.exir._serialize._named_data_store import NamedDataStore
    from executorch.exir.lowered_backend_module import LoweredBackendModule

    processed, store = lowered.processed_bytes, NamedDataStore()
    data = lowered.named_data_store_output
    for key, entry in data.pte_data.items():
        block = data.buffers[entry.buffer_index]
        slot = tags.owner(block)
        if slot is None:
            store.add_named_data(key, block, entry.alignment)
            continue
        for old, new in rename.items():
            if slot.tensor.startswith(old):
                slot = replace(slot, tensor=slot.tensor.replace(old, new, 1))
                break
        prefix, digest = key[:-64], key[-64:]
        processed = processed.replace(digest.encode(), provisional_key(slot).encode())
        # A tied head's delegate reads the embedding's table, which is a constant of the program.
        placeholder = PlaceholderBytes(slot, len(block), elsewhere=slot.tensor == EMBEDDING)
        store.add_named_data(prefix + provisional_key(slot), placeholder, entry.alignment)
    original = lowered.original_module

    class Described(LoweredBackendModule):  # type: ignore[misc]
        """Says its outputs' shapes itself. Stock, every pass over the program runs the piece's own graph again to
        learn them: 13 s instead of 7 s for 8 layers."""

        @property
        def original_module(self) -> Any:
            return Description(shapes, original.graph)

    Described.__name__ = LoweredBackendModule.__name__  # ExecuTorch knows its lowered modules by this name
    copy = Described(original, lowered.backend_id, processed, [], store.get_named_data_store_output())
    copy.meta = {}
    assert isinstance(copy, nn.Module)
    return copy


@dataclass(frozen=True)
class Description:
    """What ExecuTorch asks of a lowered module's original program."""

    shapes: Shapes
    graph: Any

    def module(self) -> Shapes:
        return self.shapes


def hide_constants(program: Any, tags: PlaceholderTags) -> None:
    """Put PlaceholderBytes in the place of a composed program's tagged constants."""
    for buffer in program.constant_buffer:
        if (slot := tags.owner(buffer.storage)) is not None:
            buffer.storage = PlaceholderBytes(slot, len(buffer.storage))


def serialised(manager: Any) -> Iterator[tuple[int, bytes]]:
    """A composed program's bytes as (offset, block), PlaceholderBytes among them."""
    from executorch.exir._serialize._program import PTEFile, serialize_pte_binary

    file = PTEFile(program=manager.executorch_program, named_data=manager._named_data)
    offset = 0
    with shared_constants(file):
        blocks = serialize_pte_binary(file, extract_delegate_segments=True)._buffers
    for block in blocks:
        if len(block):
            yield offset, block if isinstance(block, PlaceholderBytes) else bytes(block)
        offset += len(block)


def stored_program(path: Path) -> Any:
    """The program of a .pte file, without its weights: they lie behind it, where the file has a header that says so.

    Raises OSError, and whatever ExecuTorch raises for a file that is no program.
    """
    with quiet():
        from executorch.exir._serialize import _program as serialize

    with path.open("rb") as file:
        header = serialize._get_extended_header(file.read(serialize._ExtendedHeader.NUM_HEAD_BYTES))
        file.seek(0)
        data = file.read(header.program_size if header and header.is_valid() else -1)
    return serialize._flatbuffer_to_program(data)


@contextlib.contextmanager
def shared_constants(file: Any) -> Iterator[None]:
    """While a program is serialised: named data that lie elsewhere get the place of the constant of the same slot.

    The segments of a program may overlap: each is an offset and a size that its reader is given.
    """
    from executorch.exir._serialize import _program as serialize

    constants = {
        buffer.storage.slot: (index, buffer.storage.length)
        for index, buffer in enumerate(file.program.constant_buffer)
        if isinstance(buffer.storage, PlaceholderBytes)
    }
    entries = file.named_data.pte_data if file.named_data else {}
    shared = {
        key: block.slot
        for key, entry in entries.items()
        if isinstance(block := file.named_data.buffers[entry.buffer_index], PlaceholderBytes) and block.elsewhere
    }
    to_flatbuffer = serialize._program_to_flatbuffer

    def with_shared_segments(program: Any, **options: Any) -> Any:
        start = program.segments[program.constant_segment.segment_index].offset if shared else 0
        for named in program.named_data:
            if named.key in shared:
                index, length = constants[shared[named.key]]
                place = start + program.constant_segment.offsets[index]
                program.segments[named.segment_index] = serialize.DataSegment(offset=place, size=length)
        return to_flatbuffer(program, **options)

    serialize._program_to_flatbuffer = with_shared_segments
    try:
        yield
    finally:
        serialize._program_to_flatbuffer = to_flatbuffer
