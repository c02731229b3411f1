"""Targets: one table with a row for each kind of device, which decides the defaults of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from export.artifact import Format
from export.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Target:
    """One row: what `phi-edge export --target NAME` builds by default.

    `context_tokens` is chosen, not inherited: a KV cache of the model's full length may need gigabytes.
    """

    name: str
    format: Format
    formats: tuple[Format, ...]
    schemes: Mapping[Format, str]
    context_tokens: int
    accuracy_level: int  # of MatMulNBits: 4 computes in int8, three times as fast as 0 on a CPU
    provider: str  # the genai_config's execution provider; "" for the CPU
    activations: tuple[str, ...] = ("float32",)  # of the ONNX graph and its KV cache; the first is the default
    windows: bool = True  # whether the provider's attention can slide; if not, the context stays within the window
    block_sparse: bool = True  # whether the provider has phi3small's attention
    sparse_blocks: tuple[int, int] | None = None  # the only head_dim and block size that it has; None: all
    max_file_bytes: int | None = None  # how large a file of ONNX weights may be
    system_bytes: int = 300_000_000  # of a device's memory, what its system takes: a board's without a desktop
    memory_budgets: tuple[int, ...] = field(
        default=(4, 6, 8, 16)
    )  # GB of memory, the device classes that --dry-run judges


# docs/quality.md compares these with others. ONNX scales are float32, so blocks of 64 with zero points cost 4.6 bits a
# weight; ExecuTorch's are bf16, so that blocks of 32 cost 4.5.
_SCHEMES: Mapping[Format, str] = {
    "onnx": "uint4-b64-e8-weighted",
    "executorch": "int4-b32-e8-weighted",
    "gguf": "int4-b32-e8-weighted",
}

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="cpu",
            format="onnx",
            formats=("onnx", "executorch", "gguf"),
            schemes=_SCHEMES,
            context_tokens=4096,
            accuracy_level=4,
            provider="",
        ),
        Target(
            name="raspberry-pi",
            format="onnx",
            formats=("onnx", "executorch", "gguf"),
            schemes=_SCHEMES,
            context_tokens=2048,
            accuracy_level=4,
            provider="",
        ),
        Target(
            name="android",
            format="executorch",
            formats=("executorch", "onnx", "gguf"),
            schemes=_SCHEMES,
            system_bytes=2_000_000_000,  # with the app in front: beyond it Android ends processes
            context_tokens=2048,
            accuracy_level=4,
            provider="",
        ),
        Target(
            name="windows-directml",
            format="onnx",
            formats=("onnx",),
            # Its scales are float16, so blocks of 32 cost what blocks of 64 do elsewhere.
            schemes={"onnx": "uint4-b32-e8-weighted"},
            context_tokens=4096,
            accuracy_level=0,
            provider="dml",
            activations=("float16", "float32"),
            windows=False,
            block_sparse=False,
        ),
        Target(
            name="webgpu",
            format="onnx",
            formats=("onnx",),
            schemes={"onnx": "uint4-b32-e8-weighted"},
            context_tokens=4096,
            accuracy_level=0,
            provider="webgpu",
            activations=("float16", "float32"),
            block_sparse=False,
        ),
        Target(
            name="web",
            format="onnx",
            formats=("onnx",),
            schemes={"onnx": "uint4-b32-e8-weighted"},
            context_tokens=4096,
            accuracy_level=0,
            provider="webgpu",
            activations=("float16", "float32"),
            block_sparse=False,
            # A browser takes a file into memory whole, to check its hash, and not every one can do that with 2 GB.
            max_file_bytes=1_000_000_000,
        ),
        Target(
            name="cuda",
            format="onnx",
            formats=("onnx",),
            schemes={"onnx": "uint4-b32-e8-weighted"},
            context_tokens=4096,
            accuracy_level=0,
            provider="cuda",
            activations=("float16",),  # CUDA's GroupQueryAttention and SparseAttention have no float32
            sparse_blocks=(128, 64),
            memory_budgets=(8, 12, 16, 24),
        ),
    )
}


def target_named(name: str) -> Target:
    """The row of that name. Raises OptionError with the known names."""
    if name not in TARGETS:
        raise OptionError(f"unknown target {name!r}; known: {', '.join(TARGETS)}")
    return TARGETS[name]
