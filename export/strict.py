"""Plain data (from JSON or TOML) into frozen dataclasses, strictly: a misspelt or missing key is an error.

It reads no files and knows no schema: manifest, lab, budgets, measurements and the agent's facts are read with it. The
caller gives the class of the errors. Standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")


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
    hints = typing.get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, f"{where}: {name}", error) for name, value in content.items()})


def refuse_unknown(seen: Iterable[str], known: Iterable[str], where: str, error: type[Exception]) -> None:
    """Raise `error` at the first key that is not known, with the nearest known one and the list of all."""
    known = list(known)
    for key in seen:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise error(f"{where}: unknown key {key!r}{hint}; known: {', '.join(known)}")


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
            raise error(f"{where}: {value!r}; allowed: {', '.join(map(repr, arguments))}")
        return value
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _value(arguments[1], item, f"{where}.{key}", error) for key, item in value.items()}
    if origin is not None and issubclass(origin, Sequence) and isinstance(value, list):
        return tuple(_value(arguments[0], item, where, error) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise error(f"{where}: expected {_spell(hint)}, saw {value!r:.60}")


def _spell(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint)) if typing.get_origin(hint) is None else str(hint)
