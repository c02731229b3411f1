"""What an export relies on of ExecuTorch's inside: internals.py, shortcuts.py. A new version of it fails here first."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from export.checkpoint.open import open_checkpoint
from export.scheme import SCHEMES
from export.to_executorch import program
from export.to_executorch.internals import (
    VERIFIED,
    PlaceholderBytes,
    PlaceholderTags,
    content_key,
    copy_lowered,
    key_replacer,
    lower,
    provisional_key,
)
from export.to_executorch.quiet import quiet
from export.to_executorch.sizes import ring_tokens
from export.weights.slots import SlotId

WEIGHT = SlotId("before.weight")


class Product(nn.Module):
    def __init__(self, tags: PlaceholderTags) -> None:
        super().__init__()
        self.register_buffer("weight", tags.floats(WEIGHT, (8, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.get_buffer("weight"))


def test_the_version_is_the_one_that_was_verified() -> None:
    assert importlib.metadata.version("executorch") == VERIFIED, (
        "export/to_executorch/internals.py relies on ExecuTorch's inside: run the tests of this file, of "
        "test_export_bytes.py and of test_export_whole.py with the new version, then set VERIFIED"
    )


def test_a_lowered_weight_is_found_by_its_tag_and_copied_without_its_bytes() -> None:
    tags = PlaceholderTags()
    with quiet(), torch.no_grad():
        lowered = lower(Product(tags), (torch.zeros(1, 3, 4),), None)
        copy: Any = copy_lowered(lowered, tags, {"before.": "layer."}, lambda x: [x.new_empty(1, 3, 8)])
    slot = SlotId("layer.weight")
    (block,) = copy.named_data_store_output.buffers
    assert isinstance(block, PlaceholderBytes) and block.slot == slot and len(block) == 8 * 4 * 4
    assert list(copy.named_data_store_output.pte_data) == [provisional_key(slot)]
    assert provisional_key(slot).encode() in copy.processed_bytes
    assert type(copy).__name__ == "LoweredBackendModule"


def test_few_passes_give_the_bytes_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gated product over tokens of an unknown number, as the pieces have."""

    class Gated(Product):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x * 0.5)
            return y * torch.sigmoid(y)

    shapes = {"x": {1: torch.export.Dim("tokens", min=1, max=8)}}
    with quiet(), torch.no_grad():
        few = lower(Gated(PlaceholderTags()), (torch.zeros(1, 3, 4),), shapes)
        monkeypatch.setattr("export.to_executorch.internals.few_passes", contextlib.nullcontext)
        all_of_them = lower(Gated(PlaceholderTags()), (torch.zeros(1, 3, 4),), shapes)
    assert few.processed_bytes == all_of_them.processed_bytes


@pytest.mark.parametrize("shortcut", ["one_removal", "unchecked_branches"])
def test_a_composed_program_has_the_bytes_of_the_long_way(shortcut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program with rings, whose attention has branches."""
    short = fixed_bytes()
    monkeypatch.setattr(program, shortcut, contextlib.nullcontext)
    assert short == fixed_bytes()


def fixed_bytes() -> Mapping[int, bytes]:
    """All of the tiny model's program but the weights."""
    config = open_checkpoint("tiny").config
    ring = ring_tokens(config.sliding_window, 4096)
    built = program.build(config, SCHEMES["int4-b32"], context_tokens=4096, ring_tokens=ring, bos=1, stop=[2])
    return built.fixed


def test_keys_are_replaced_by_those_of_the_content() -> None:
    slot = SlotId("layer.weight", "codes", "query0")
    before = b"\x00" + provisional_key(slot).encode() + b"\x01" + b"f" * 64
    after = b"\x00" + content_key(slot, "digest").encode() + b"\x01" + b"f" * 64
    assert key_replacer({slot: "digest"})(before) == after


def test_what_a_failed_lowering_printed_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="no kernel"), quiet():
        print(*(f"line {n}" for n in range(30)), sep="\n", file=sys.stderr)
        raise RuntimeError("no kernel")
    assert "line 29" in capsys.readouterr().err
    with quiet():
        print("nothing of interest", file=sys.stderr)
    assert capsys.readouterr().err == ""
