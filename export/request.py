"""What a user can ask of an export: each option once, with its flag and its help.

`phi-edge export` and `optimum-cli export phi-edge` make their options from these fields. A new option is one field here
and the place that uses it. It imports only tables, so that `--help` is fast and needs no library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar, get_args

from export.artifact import Format
from export.errors import OptionError
from export.scheme import SCHEMES
from export.target import TARGETS, Target

T = TypeVar("T")

ADAPTER = "FOLDER[=WEIGHT]"
MOST_ADAPTER_WEIGHT = 1000.0


@dataclass(frozen=True)
class AdapterChoice:
    """A PEFT adapter's folder, and how much of it is added."""

    folder: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Option:
    """How a command line offers one field of an ExportRequest."""

    field: str
    flag: str
    help: str
    default: object
    default_text: str | None  # how the default is chosen, where it is not one value
    choices: Sequence[str] | None
    parse: Callable[[str], object] | None  # text -> value; raises OptionError or ValueError. None for a plain switch
    metavar: str | None
    repeatable: bool  # the field is a tuple of what the option gave each time
    shapes_artifact: bool  # False for what changes only how the work is done


def parse_size(text: str) -> int:
    """500MB, 2GB or a number of bytes -> bytes. Raises OptionError."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(GB|MB|KB|)", text.strip().upper())
    if match is None:
        raise OptionError(f"{text!r} is not a size; give a number with KB, MB or GB, such as 500MB")
    return int(float(match[1]) * {"GB": 10**9, "MB": 10**6, "KB": 10**3, "": 1}[match[2]])


def parse_adapter(text: str) -> AdapterChoice:
    """FOLDER or FOLDER=WEIGHT -> the choice. Raises OptionError."""
    folder, equals, weight = text.rpartition("=")
    if not equals or Path(text).is_dir():
        return AdapterChoice(text)
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not folder or not abs(value) <= MOST_ADAPTER_WEIGHT:
        raise OptionError(
            f"{text!r:.80} has the weight {weight!r:.20}; give FOLDER or FOLDER=WEIGHT, with a number such as 0.5"
        )
    return AdapterChoice(folder, value)


def parse_bits(text: str) -> float:
    """Bits a weight. Raises ValueError for what is no finite number."""
    bits = float(text)
    if not math.isfinite(bits):
        raise ValueError(f"{text!r} is no number of bits")
    return bits


def _option(
    flag: str,
    help: str,
    default: T,
    *,
    default_text: str | None = None,
    choices: Sequence[str] | None = None,
    parse: Callable[[str], object] | None = str,
    metavar: str | None = None,
    repeatable: bool = False,
    shapes_artifact: bool = True,
) -> T:
    """A field with its command-line option; to a type checker it is its default."""
    words = {"flag": flag, "help": help, "default_text": default_text, "choices": choices, "parse": parse}
    more = {"metavar": metavar, "repeatable": repeatable, "shapes_artifact": shapes_artifact}
    return field(default=default, metadata={"option": words | more})


def _by_target(value: Callable[[Target], object]) -> str:
    """A default that the target decides, for the help: `onnx (cpu, raspberry-pi), executorch (android)`."""
    names: dict[str, list[str]] = {}
    for target in TARGETS.values():
        names.setdefault(str(value(target)), []).append(target.name)
    return "the target's: " + ", ".join(f"{text} ({', '.join(those)})" for text, those in names.items())


def _schemes(target: Target) -> str:
    return " or ".join(
        f"{target.schemes[format]} as {format}" for format in get_args(Format) if format in target.formats
    )


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What the user asked for. None takes the target's default."""

    checkpoint: str
    out: Path
    adapters: tuple[AdapterChoice, ...] = _option(
        "--adapter",
        "A folder with a LoRA adapter of PEFT, which is merged into the weights. Repeat it for several: what they add, "
        "each times its WEIGHT, is summed.",
        (),
        default_text="none",
        parse=parse_adapter,
        metavar=ADAPTER,
        repeatable=True,
    )
    side_adapters: tuple[AdapterChoice, ...] = _option(
        "--side-adapter",
        "As --adapter, but kept beside the weights: each request may choose one by its folder's name (run --lora "
        "NAME). ONNX on the CPU only.",
        (),
        default_text="none",
        parse=parse_adapter,
        metavar=ADAPTER,
        repeatable=True,
    )
    target: str = _option(
        "--target",
        "The kind of device. It decides the defaults below.",
        "cpu",
        choices=tuple(TARGETS),
    )
    format: str | None = _option(
        "--format",
        "The artifact's format.",
        None,
        choices=get_args(Format),
        default_text=_by_target(lambda target: target.format),
    )
    scheme: str | None = _option(
        "--scheme",
        "How weights are stored: int4-b32 is 4 bits with one scale for 32 weights, uint4 adds a zero point, -e8 keeps "
        "embedding and head in 8 bits; -weighted and -gptq look at a calibration text. fp32 keeps floats, "
        "as do bf16 and fp16 for GGUF.",
        None,
        choices=tuple(SCHEMES),
        default_text=_by_target(_schemes),
    )
    context_tokens: int | None = _option(
        "--context",
        "The longest sequence, in tokens. A longer one needs more memory on the device.",
        None,
        default_text=_by_target(lambda target: target.context_tokens)
        + ", or less where the model's context or its sliding window ends before",
        parse=int,
        metavar="TOKENS",
    )
    activations: str | None = _option(
        "--activations",
        "The number type in the ONNX graph and its float KV cache.",
        None,
        choices=tuple(dict.fromkeys(name for target in TARGETS.values() for name in target.activations)),
        default_text=_by_target(lambda target: target.activations[0]),
    )
    kv_cache: str = _option(
        "--kv-cache",
        "The number type of the KV cache: float is that of --activations; int8 takes a quarter of float32's memory, "
        "with a scale for each channel from the calibration text. ONNX on the CPU only.",
        "float",
        choices=("float", "int8"),
    )
    lengths_as_inputs: bool = _option(
        "--lengths-as-inputs",
        "For DirectML only: take sequence lengths as inputs, so that every node runs on the GPU. onnxruntime-genai "
        "cannot load such a model.",
        False,
        parse=None,
    )
    max_file_bytes: int | None = _option(
        "--max-file-size",
        "Split ONNX weights into files of at most this size, such as 500MB or 2GB.",
        None,
        default_text=_by_target(
            lambda target: f"{target.max_file_bytes // 10**6}MB" if target.max_file_bytes else "one file"
        ),
        parse=parse_size,
        metavar="SIZE",
    )
    calibration: str | None = _option(
        "--calibration",
        "A text for the methods that look at activations: plain text, or JSON lines with "
        '{"text": ...} or {"messages": [...]}.',
        None,
        default_text="a varied text that ships with phi-edge",
        metavar="FILE",
    )
    max_bytes: int | None = _option(
        "--max-bytes",
        "Store as many of the layers' matrices in more bits as this size of all weights allows, those first that lower "
        "the loss most, as measured.",
        None,
        default_text="the scheme's bits for all",
        parse=parse_size,
        metavar="SIZE",
    )
    bits_per_weight: float | None = _option(
        "--bits-per-weight",
        "As --max-bytes, given as the mean of all matrices with their scales, such as 5.2.",
        None,
        default_text="the scheme's bits for all",
        parse=parse_bits,
        metavar="BITS",
    )
    require_full_delegation: bool = _option(
        "--require-full-delegation",
        "Fail with exit code 1 if a node would run outside the accelerator (DirectML or XNNPACK).",
        False,
        parse=None,
        shapes_artifact=False,
    )
    # Forget what an interrupted export has finished.
    fresh: bool = _option(
        "--fresh",
        "Start again from the beginning, even if an interrupted export can be continued.",
        False,
        parse=None,
        shapes_artifact=False,
    )

    @property
    def has_budget(self) -> bool:
        """Whether the precision of each tensor is chosen by a size."""
        return self.max_bytes is not None or self.bits_per_weight is not None


def export_options() -> list[Option]:
    """Every option of an export, in the order of the help."""
    return [
        Option(field=each.name, default=each.default, **each.metadata["option"])
        for each in fields(ExportRequest)
        if "option" in each.metadata
    ]
