"""What config.json says of a checkpoint that is quantised already: its packing, or why it cannot be imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from export.checkpoint.files import read_object
from export.checkpoint.packings import Awq, Gptq, Packing, PackQuantized
from export.checkpoint.shards import FLOATS
from export.errors import CheckpointError

KEYS = ("quantization_config", "compression_config")
# What MatMulNBits takes.
GROUP_SIZES = (16, 32, 64, 128, 256)
# The end of a tensor's name -> who stores such tensors, and what to do.
MERGE = "merge it into the 16-bit model, or save it dequantised"
GIVE_KEY = "config.json must have the quantization_config that it was saved with, or give the float checkpoint"
PACKED = {
    ".absmax": ("bitsandbytes (4 bits)", MERGE),
    ".quant_map": ("bitsandbytes (4 bits)", MERGE),
    ".SCB": ("bitsandbytes (8 bits)", MERGE),
    ".qweight": ("GPTQ or AWQ", GIVE_KEY),
    ".weight_packed": ("compressed-tensors", GIVE_KEY),
    ".weight_scale": ("8-bit floats or integers with scales", "give the float checkpoint, or save it dequantised"),
    ".weight_scale_inv": ("8-bit floats with scales (FP8)", "give the float checkpoint, or save it dequantised"),
}


class Typed(Protocol):
    """A tensor of the checkpoint, of which only the type counts here."""

    @property
    def dtype(self) -> torch.dtype: ...


@dataclass(frozen=True)
class Quantisation:
    """How the quantised linear layers of a checkpoint are stored."""

    method: str
    packing: Packing
    group_size: int  # weights along the input that share a scale
    required: Sequence[str] = ()  # tensors that are optional in the packing, and that these settings promise


def judged_by_codes(folder: Path) -> bool:
    """Whether it takes the tensors themselves, and not only their headers, to know if this checkpoint can be imported:
    how a layer's groups are ordered, say. What config.json has wrong is for open_checkpoint to say."""
    try:
        return read_quantisation(read_object(folder / "config.json")) is not None
    except (CheckpointError, OSError):
        return False


def read_quantisation(content: Mapping[str, Any]) -> Quantisation | None:
    """config.json's content -> how the layers are stored; None for a float checkpoint. Raises CheckpointError."""
    settings = next((content[key] for key in KEYS if content.get(key) is not None), None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or method not in READERS:
        raise CheckpointError(
            f"config.json: by its 'quantization_config' it is quantised by {method}, whose codes cannot be imported; "
            f"allowed: {', '.join(READERS)}; or give the float checkpoint"
        )
    return READERS[method](method, settings)


def packed_reason(tensors: Mapping[str, Typed]) -> str | None:
    """Who has quantised a checkpoint, by the names and types of those of its tensors that were not imported, and what
    to do; None where all are floats."""
    for end, (method, advice) in PACKED.items():
        if found := next((name for name in tensors if name.endswith(end)), None):
            return f"its weights are quantised by {method}, as {found} shows: {advice}"
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS.values():
            kind = str(tensor.dtype).removeprefix("torch.")
            return f"its weights are quantised or packed ({name} is {kind}): give the float checkpoint, or {MERGE}"
    return None


def without_quantisation(content: Mapping[str, Any]) -> dict[str, Any]:
    """config.json's content as that of the float model."""
    return {key: value for key, value in content.items() if key not in KEYS}


def _gptq(method: str, settings: Mapping[str, Any]) -> Quantisation:
    versions = {"gptq": 1, "gptq_v2": 0}
    version = settings.get("checkpoint_format") or "gptq"
    if not isinstance(version, str) or version not in versions or settings.get("is_marlin_format"):
        version = "marlin" if settings.get("is_marlin_format") else version
        raise _cannot(method, "checkpoint_format", version, "gptq or gptq_v2")
    if settings.get("adapter"):
        raise _cannot(method, "adapter", settings["adapter"], "none: merge it first")
    required = ["g_idx"] if settings.get("desc_act") else []
    return _checked(method, Gptq(versions[version]), settings.get("bits"), settings.get("group_size"), required)


def _awq(method: str, settings: Mapping[str, Any]) -> Quantisation:
    version = str(settings.get("version") or "gemm").lower()
    if version != "gemm":
        raise _cannot(method, "version", version, "gemm")
    bits = settings.get("bits", settings.get("w_bit"))
    return _checked(method, Awq(), bits, settings.get("group_size", settings.get("q_group_size")))


def _auto_round(method: str, settings: Mapping[str, Any]) -> Quantisation:
    # Its zero points are stored as those of GPTQ's first format.
    packings: dict[str, Packing] = {"auto_round:auto_gptq": Gptq(1), "auto_round:auto_awq": Awq()}
    name = settings.get("packing_format")
    if not isinstance(name, str) or name not in packings:
        raise _cannot(method, "packing_format", name, " or ".join(packings))
    if settings.get("act_bits", 16) not in (16, 32, None):
        raise _cannot(method, "act_bits", settings["act_bits"], "16: weights alone")
    if settings.get("data_type", "int") != "int":
        raise _cannot(method, "data_type", settings["data_type"], "int")
    return _checked(method, packings[name], settings.get("bits"), settings.get("group_size"))


def _compressed_tensors(method: str, settings: Mapping[str, Any]) -> Quantisation:
    if settings.get("format") != "pack-quantized":
        raise _cannot(method, "format", settings.get("format"), "pack-quantized")
    transforms = _table(method, "transform_config", settings.get("transform_config"))
    if transforms.get("config_groups"):
        raise _cannot(method, "transform_config", "given", "none: the model would have to transform its activations")
    if settings.get("kv_cache_scheme"):
        raise _cannot(method, "kv_cache_scheme", "given", "none")
    groups = list(_table(method, "config_groups", settings.get("config_groups")).values())
    if len(groups) != 1:
        raise _cannot(method, "number of config_groups", len(groups), "1")
    group = _table(method, "config_groups", groups[0])
    if group.get("input_activations") or group.get("output_activations"):
        raise _cannot(method, "activations", "quantised", "weights alone")
    weights = _table(method, "weights", group.get("weights"))
    if weights.get("type") != "int" or weights.get("strategy") not in ("group", "channel"):
        seen = f"{weights.get('type')} by {weights.get('strategy')}"
        raise _cannot(method, "weights", seen, "int by group")
    group_size = -1 if weights["strategy"] == "channel" else weights.get("group_size")
    required = ["weight_zero_point"] if weights.get("symmetric") is False else []
    return _checked(method, PackQuantized(), weights.get("num_bits"), group_size, required)


def _table(method: str, key: str, value: object) -> Mapping[str, Any]:
    """A value of config.json that is a table, or is left out."""
    if not isinstance(value, dict | None):
        raise _cannot(method, key, value, "a table")
    return value or {}


def _checked(
    method: str, packing: Packing, bits: object, group_size: object, required: Sequence[str] = ()
) -> Quantisation:
    if bits != 4:
        raise _cannot(method, "number of bits", repr(bits), "4")
    if not isinstance(group_size, int) or group_size not in GROUP_SIZES:
        seen = "-1 (a scale for each channel)" if group_size == -1 else group_size
        raise _cannot(method, "group_size", seen, ", ".join(map(str, GROUP_SIZES)))
    return Quantisation(method, packing, group_size, required)


def _cannot(method: str, key: str, seen: object, allowed: str) -> CheckpointError:
    return CheckpointError(
        f"config.json: quantised by {method}, its {key} is {seen!s:.80}, which cannot be imported without loss; "
        f"allowed: {allowed}; or give the float checkpoint"
    )


# quant_method -> how its settings are read.
READERS: Mapping[str, Callable[[str, Mapping[str, Any]], Quantisation]] = {
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "compressed-tensors": _compressed_tensors,
}
