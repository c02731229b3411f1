"""The weights that an artifact really holds, read back from its weight file in float32: codes times scales.

Where each tensor lies is not in the manifest: the layout is made again from the checkpoint, as the export made it. An
artifact that another version laid out differently has another size, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from export.artifact import Artifact
from export.errors import ArtifactError
from export.formats import LAYOUTS
from export.job import resolve
from export.models.shape import EMBEDDING
from export.request import ExportRequest
from export.weights.slots import Slot

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int8": torch.int8,
}
MIDDLE = {4: 8, 8: 128}  # the code that stands for 0


def read_weights(artifact: Artifact, checkpoint: str) -> dict[str, Tensor]:
    """Every tensor of the model by its name in the checkpoint, float32, as the artifact's engine multiplies with it.

    Raises ArtifactError where the artifact was not made from this checkpoint by this version.
    """
    manifest = artifact.manifest
    job = resolve(
        ExportRequest(
            checkpoint=checkpoint,
            out=artifact.folder,
            target=manifest.target,
            format=manifest.format,
            scheme=manifest.scheme.name,
            context_tokens=manifest.context_tokens,
            activations=manifest.scheme.activations.split(",")[0] if manifest.format == "onnx" else None,
            max_file_bytes=manifest.engine.get("max_file_bytes"),
            lengths_as_inputs=manifest.engine.get("lengths") == "inputs",
        )
    )
    layout = LAYOUTS[manifest.format](job)
    for slot in layout.slots.values():
        path = artifact.folder / slot.file
        if slot.file not in manifest.files or path.stat().st_size < slot.end:
            raise ArtifactError(f"{artifact.folder}: is not laid out as this version would; export it again")
    file = WeightReader(artifact.folder, layout.slots, layout.spread)
    tensors = job.checkpoint.tensors
    weights = {
        name: file.tensor(name, tensor.shape, job.scheme.embedding_bits if name == EMBEDDING else job.scheme.bits)
        for name, tensor in tensors.items()
    }
    if "lm_head.weight" not in tensors and any(slot.startswith("lm_head.weight") for slot in layout.slots):
        # Tied in the checkpoint, but quantised anew by a format that cannot share one table.
        weights["lm_head.weight"] = file.tensor("lm_head.weight", tensors[EMBEDDING].shape, job.scheme.bits)
    return weights


class WeightReader:
    """The inverse of export.weights.weight_file: a tensor's bytes from its slots, in the order of its rows."""

    def __init__(
        self, folder: Path, slots: Mapping[str, Slot], spread: Mapping[str, Sequence[tuple[str, int]]]
    ) -> None:
        self.folder, self.slots, self.spread = folder, slots, spread

    def tensor(self, name: str, shape: tuple[int, ...], bits: int | None) -> Tensor:
        """One tensor of the checkpoint, dequantised where it was quantised with so many bits."""
        if name in self.slots or name in self.spread:
            return self.read(name).float().reshape(shape)
        assert bits is not None, f"{name} has no slot"
        packed, slot = self.read(f"{name}_q"), self.slot(f"{name}_q")
        scales = self.read(f"{name}_scales").float().reshape(shape[0], -1)
        codes = unpack(packed, bits, slot).float().reshape(shape[0], scales.shape[1], -1)
        return (codes * scales[:, :, None]).reshape(shape)

    def slot(self, name: str) -> Slot:
        return self.slots[self.spread[name][0][0] if name in self.spread else name]

    def read(self, name: str) -> Tensor:
        """A tensor's items in its stored type, flat."""
        pieces = self.spread.get(name) or [(name, self.slots[name].length)]
        parts = {piece: memoryview(self.stored(self.slots[piece])) for piece, _ in pieces}
        total, data, turns = sum(len(part) for part in parts.values()), bytearray(), cycle(pieces)
        while len(data) < total:
            piece, count = next(turns)
            data += parts[piece][:count]
            parts[piece] = parts[piece][count:]
        return torch.frombuffer(data, dtype=DTYPES[self.slot(name).dtype])

    def stored(self, slot: Slot) -> bytes:
        """A slot's bytes."""
        with (self.folder / slot.file).open("rb") as file:
            file.seek(slot.offset)
            return file.read(slot.length)


def unpack(packed: Tensor, bits: int, slot: Slot) -> Tensor:
    """Codes around 0: see QuantisedRows.pack."""
    if bits == 8:
        return packed.int() if slot.dtype == "int8" else packed.int() - MIDDLE[8]
    low, high = packed & 15, packed >> 4
    pair = (high, low) if slot.even_high else (low, high)
    return torch.stack(pair, dim=-1).flatten().int() - MIDDLE[4]
