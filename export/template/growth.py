"""How large a result may become, before it is made: for operations whose result can be far larger than what goes in.

Each function takes what the operation takes, and gives an upper bound of the result's parts. Whatever it cannot take is
an error of the template: no operation is done unseen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

from export.template.allowance import ITEM_PARTS, check_parts, parts

Growth = Callable[..., int]
_PERCENT_FIELD = re.compile(r"%(?:\([^()]*\))?[^a-zA-Z%]*")
_NESTED_NAME = re.compile(r"%\([^()]*\(")
_BRACE_FIELD = re.compile(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
_HUGE = 10**9  # for a number of too many digits


def check_growth(growth: Growth | None, arguments: Sequence[Any], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments, after a look at what the operation makes of them. Raises OverflowError where that is too large.

    What an iterator would give is put into a list first: it can be looked at only once.
    """
    if growth is None:
        return tuple(arguments)
    arguments = tuple(list(each) if isinstance(each, Iterator) else each for each in arguments)
    check_parts(growth(*arguments, **named))
    return arguments


def _add(left: Any, right: Any) -> int:
    return parts(left) + parts(right) if isinstance(left, Sized) and isinstance(right, Sized) else 0


def _multiply(left: Any, right: Any) -> int:
    for many, times in ((left, right), (right, left)):
        if isinstance(many, Sized) and isinstance(times, int):
            return parts(many) * times
    return left.bit_length() + right.bit_length() if isinstance(left, int) and isinstance(right, int) else 0


def _power(left: Any, right: Any) -> int:
    return left.bit_length() * right if isinstance(left, int) and isinstance(right, int) else 0


def _padded(text: Any, width: int = 80, *_: Any) -> int:
    return parts(text) + width


def _encoded(number: Any, length: int = 1, *_: Any, **__: Any) -> int:
    return length


def _expanded(text: Any, tabsize: int = 8) -> int:
    tabs: int = text.count("\t" if isinstance(text, str) else b"\t")
    return len(text) + tabs * tabsize


def _replaced(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> int:
    times: int = text.count(old)
    return len(text) + times * len(new)


def _replaced_text(s: Any, old: Any, new: Any, count: Any = None) -> int:
    return _replaced(str(s), str(old), str(new))


def _joined(separator: Any, items: Any) -> int:
    return parts(items) + len(separator) * len(items)


def _joined_by(value: Any, d: Any = "", attribute: Any = None) -> int:
    return _joined(str(d), value)


def _translated(text: Any, table: Mapping[Any, Any]) -> int:
    return len(text) * max((parts(value) for value in table.values() if isinstance(value, str)), default=1)


def _formatted(text: Any, *values: Any, **named: Any) -> int:
    """By `format`: each field is as wide as the largest value and the largest width."""
    fields = _BRACE_FIELD.findall(text.replace("{{", ""))
    return len(text) + _fields(fields, [*values, *named.values()], "".join(fields).count("{") > len(fields))


def _formatted_map(text: Any, values: Mapping[str, Any]) -> int:
    return _formatted(text, *values.values())


def _percent(value: Any, *values: Any, **named: Any) -> int:
    """By `%`."""
    if not isinstance(value, str | bytes):
        return 0
    text = value if isinstance(value, str) else value.decode("latin-1")
    fields = [text] if _NESTED_NAME.search(text) else _PERCENT_FIELD.findall(text)
    items = [item for given in values for item in (given if isinstance(given, tuple) else [given])]
    return len(text) + _fields(fields, [*items, *named.values()], any("*" in field for field in fields))


def _fields(fields: Sequence[str], values: Sequence[Any], widths_are_given: bool) -> int:
    """`widths_are_given`: one of the values may be a width."""
    widest = max(map(parts, values), default=0)
    if widths_are_given:
        widest += max((abs(value) for value in values if isinstance(value, int)), default=0)
    widths = [int(digits) if len(digits) < 10 else _HUGE for field in fields for digits in re.findall(r"\d+", field)]
    return sum(widths) + len(fields) * widest


def _indented(s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> int:
    return parts(s) + (str(s).count("\n") + 1) * (width if isinstance(width, int) else len(width))


def _wrapped(s: Any, width: int = 79, break_long_words: bool = True, wrapstring: Any = None, *_: Any, **__: Any) -> int:
    return parts(s) * max(1, len(wrapstring or ""))


def _batched(value: Any, linecount: int, fill_with: Any = None) -> int:
    return parts(value) + ITEM_PARTS * linecount


def _sliced(value: Any, slices: int, fill_with: Any = None) -> int:
    return parts(value) + ITEM_PARTS * slices


def _rounded(value: Any, precision: int = 0, method: str = "common") -> int:
    return 10_000 * precision  # 10 to this power takes long


def _json(value: Any, ensure_ascii: bool = False, indent: Any = None, *_: Any, **__: Any) -> int:
    width = indent if isinstance(indent, int) else len(indent or "")
    return parts(value) * (1 + max(0, width))


def _urls(value: Any, *given: Any, **named: Any) -> int:
    return parts(value) + (str(value).count(".") + str(value).count("@")) * parts([*given, *named.values()])


def _pretty(value: Any) -> int:
    return 40 * parts(value)  # lists in lists are indented


OPERATORS: dict[str, Growth] = {"+": _add, "*": _multiply, "**": _power, "%": _percent}
METHODS: dict[str, Growth] = {  # of texts, bytes and numbers
    "center": _padded,
    "expandtabs": _expanded,
    "format": _formatted,
    "format_map": _formatted_map,
    "join": _joined,
    "ljust": _padded,
    "replace": _replaced,
    "rjust": _padded,
    "to_bytes": _encoded,
    "translate": _translated,
    "zfill": _padded,
}
FILTERS: dict[str, Growth] = {
    "batch": _batched,
    "center": _padded,
    "format": _percent,
    "indent": _indented,
    "join": _joined_by,
    "pprint": _pretty,
    "replace": _replaced_text,
    "round": _rounded,
    "slice": _sliced,
    "tojson": _json,
    "urlize": _urls,
    "wordwrap": _wrapped,
}
