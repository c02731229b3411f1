"""JSON and TOML, read strictly, and their plain data into frozen dataclasses: a misspelt or missing key is an error.

It knows no schema: manifests, labs, budgets, measurements, tokenizers and the agents' lines are read with it, so that
none of them can crash a program by its depth, its size, a NaN or half a character. The caller gives the class of the
errors. Standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import re
import tomllib
import types
import typing
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")

MOST_BYTES = 1 << 28  # of a file: the largest tokenizer.json has 40 MB
MOST_NESTING = 64  # of lists and objects in one another: manifests have 5, tokenizers 7
_INTEGER_LIMIT = 1 << 63
_WITHIN = "within"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes, *, finite: bool = True) -> Any:
    """The value of a JSON text by RFC 8259 and I-JSON: UTF-8, finite numbers, each key once, whole characters.

    With `finite` False a number beyond every float is infinite, for a caller that checks each number itself.
    Raises ValueError, with the reason in one line.
    """
    try:
        content = json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite if finite else None,
            object_pairs_hook=_object,
        )
        if _SURROGATE.search(data):
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError(f"lists and objects are nested deeper than {MOST_NESTING}") from None
    except UnicodeEncodeError:
        raise ValueError("a text contains half of a surrogate pair") from None
    _check_nesting(content)
    return content


def read_json(path: Path, error: type[Exception], advice: str) -> Any:
    """The value of a JSON file. Raises `error`: what is wrong with it, and `advice`."""
    try:
        return parse_json(_read(path))
    except OSError as failure:
        raise error(f"{path}: cannot be read ({failure.strerror}); {advice}") from failure
    except ValueError as failure:
        raise error(f"{path}: is not JSON ({failure}); {advice}") from failure


def read_toml(path: Path, error: type[Exception]) -> dict[str, Any]:
    """The content of a TOML file. Raises `error`."""
    try:
        content = tomllib.loads(_read(path).decode("utf-8"))
        _check_nesting(content)
    except OSError as failure:
        raise error(f"{path}: cannot be read ({failure.strerror})") from failure
    except RecursionError:
        raise error(f"{path}: is not TOML (lists are nested deeper than {MOST_NESTING})") from None
    except ValueError as failure:
        raise error(f"{path}: is not TOML ({failure})") from failure
    return content


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    return data


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text:.20} is beyond every float")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.60} is given twice")
    return content


def _check_nesting(content: object) -> None:
    level = [content]
    for _ in range(MOST_NESTING):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"lists and objects are nested deeper than {MOST_NESTING}")


def build(kind: type[T], content: object, where: str, error: type[Exception]) -> T:
    """Build the dataclass `kind` from a mapping, and its fields in the same way; lists become tuples.

    `where` names the place for the message. Raises `error` for unknown, missing and mistyped keys.

        build(SshDevice, {"transport": "ssh", "host": "pi5"}, "lab.toml: device.pi", LabError)
    """
    if not isinstance(content, Mapping):
        raise error(f"{where}: expected a table of {kind.__name__}, saw {content!r:.60}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    refuse_unknown(content, fields, where, error)
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in content and not has_default:
            raise error(f"{where}: lacks {name!r}; known: {', '.join(fields)}")
    hints = _hints(kind)  # type: ignore[arg-type]
    values = {name: _value(hints[name], value, f"{where}: {name}", error) for name, value in content.items()}
    for name, value in values.items():
        low, high = fields[name].metadata.get(_WITHIN, (None, None))
        if low is not None and value is not None and not low <= value <= high:
            raise error(f"{where}: {name} is {value}; allowed: {low} to {high}")
    return kind(**values)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    # It compiles each annotation: two thirds of the time of a measurement, which has ten of the same class.
    return typing.get_type_hints(kind)


def within(low: float, high: float, *, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field whose number `build` refuses outside of low to high.

    layers: int = within(1, 4096)
    """
    return dataclasses.field(default=default, metadata={_WITHIN: (low, high)})


def refuse_unknown(seen: Iterable[str], known: Iterable[str], where: str, error: type[Exception]) -> None:
    """Raise `error` at the first key that is not known, with the nearest known one and the list of all."""
    known = list(known)
    for key in seen:
        if key not in known:
            near = difflib.get_close_matches(key[:60], known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise error(f"{where}: unknown key {key!r:.60}{hint}; known: {', '.join(known)}")


def _value(hint: Any, value: Any, where: str, error: type[Exception]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where, error)
    if origin in (types.UnionType, typing.Union):
        options = [option for option in arguments if option is not type(None)]
        if value is None and len(options) < len(arguments):
            return None
        return _value(options[0], value, where, error)
    if origin is Literal:
        if value not in arguments:
            raise error(f"{where}: {value!r:.60}; allowed: {', '.join(map(repr, arguments))}")
        return value
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _value(arguments[1], item, f"{where}.{key:.60}", error) for key, item in value.items()}
    if origin is not None and issubclass(origin, Sequence) and isinstance(value, list):
        return tuple(_value(arguments[0], item, where, error) for item in value)
    if hint in (float, int) and isinstance(value, hint | int) and not isinstance(value, bool):
        return _number(hint, value, where, error)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise error(f"{where}: expected {_spell(hint)}, saw {value!r:.60}")


def _number(kind: type[float], value: float, where: str, error: type[Exception]) -> float:
    """As `kind`, float or int; TOML has numbers that are neither finite nor of 64 bits."""
    if not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT and not (isinstance(value, float) and math.isfinite(value)):
        raise error(f"{where}: expected a finite number of at most 64 bits, saw {value!r:.60}")
    return kind(value)


def _spell(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint)) if typing.get_origin(hint) is None else str(hint)
