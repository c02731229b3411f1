"""The language of chat templates: jinja2 with what transformers' environment offers, so that the same template gives
the same text. Source: transformers, utils/chat_template_utils.py."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from export.template.allowance import Allowance

if TYPE_CHECKING:
    from export.template.sandbox import LimitedSandbox

CLOCK = "strftime_now"  # the name by which a template writes the date
MOST_DATE = 10_000  # characters of a date's form


def make_environment(allowance: Allowance) -> LimitedSandbox:
    """A sandbox of so much memory, with the tags `break`, `continue` and `generation`, the filter `tojson`, and the
    functions `raise_exception`, `strftime_now`, `dict` and `namespace`."""
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock, Node
    from jinja2.parser import Parser
    from jinja2.utils import Namespace

    from export.template.sandbox import LimitedSandbox

    class Generation(Extension):
        """`{% generation %}` marks the assistant's own words for a trainer. Here it writes what is in it."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

        def _written(self, caller: Callable[[], str]) -> str:
            return caller()

    class Dict:
        """`dict` without a class's attributes."""

        def __call__(self, *arguments: Any, **pairs: Any) -> dict[Any, Any]:
            return dict(*arguments, **pairs)

        def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
            return dict.fromkeys(*arguments)

    class Names(Namespace):
        """`namespace` without names that begin with an underscore."""

        def __init__(*arguments: Any, **pairs: Any) -> None:  # as jinja2's, so that `self` may be a name
            self, *given = arguments
            names = dict(*given, **pairs)
            for name in names:
                refuse_private(name)
            Namespace.__init__(self, names)

        def __setitem__(self, name: str, value: Any) -> None:
            refuse_private(name)
            super().__setitem__(name, value)

        def __repr__(self) -> str:  # not what is in it: a namespace may be in itself
            return "<Namespace>"

    def refuse_private(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot have the name {name!r}")

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own escapes what HTML would misread.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = LimitedSandbox(allowance, [Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.limit_filters()
    del environment.globals["lipsum"]  # writes as long a text as it is asked for, and looks at no clock
    environment.globals.update(
        {
            "raise_exception": raise_exception,
            "dict": Dict(),
            "namespace": Names,
            CLOCK: clock(datetime.datetime.now()),
        }
    )
    return environment


def clock(now: datetime.datetime) -> Callable[[str], str]:
    """A template's clock that has stopped: all of a rendering has one time."""

    def strftime_now(format: str) -> str:
        if len(format) > MOST_DATE:
            raise OverflowError(f"it writes the date in a form of more than {MOST_DATE} characters")
        return now.strftime(format)

    return strftime_now


def writes_date(source: str) -> bool:
    """Whether a template's text depends on the day."""
    from jinja2.meta import find_undeclared_variables

    environment = make_environment(Allowance())
    del environment.globals[CLOCK]  # what the environment has is not reported
    return CLOCK in find_undeclared_variables(environment.parse(source))
