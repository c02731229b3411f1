"""jinja2's sandbox, with an allowance: whatever a template makes is looked at before, where it could be far larger than
what goes in, and counted afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.nodes import Concat, Dict, Getitem, List, Slice, Tuple
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

from export.template.allowance import Allowance, check_parts, parts
from export.template.growth import FILTERS, METHODS, OPERATORS, Growth, check_growth


class LimitedGenerator(CodeGenerator):
    """Python of a template, in which lists, slices and `~` are made through the environment."""

    def visit_Concat(self, node: Concat, frame: Frame) -> None:
        self.write("environment.concatenated(context.eval_ctx.autoescape, (")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: List, frame: Frame) -> None:
        self._made(super().visit_List, node, frame)

    def visit_Dict(self, node: Dict, frame: Frame) -> None:
        self._made(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._made(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: Getitem, frame: Frame) -> None:
        if isinstance(node.arg, Slice):
            self._made(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _made(self, write: Callable[..., None], node: object, frame: Frame) -> None:
        self.write("environment.made(")
        write(node, frame)
        self.write(")")


class LimitedSandbox(ImmutableSandboxedEnvironment):
    """`limit_filters` comes after the last change of `filters`."""

    code_generator_class = LimitedGenerator
    intercepted_binops = frozenset(OPERATORS)

    def __init__(self, allowance: Allowance, extensions: list[type[Extension]]) -> None:
        self.made = allowance.made
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self.written)
        self.concat = self.joined  # type: ignore[method-assign]  # jinja2 calls it

    def limit_filters(self) -> None:
        """Each filter from now on."""
        for name, function in self.filters.items():
            self.filters[name] = self._limited(function, FILTERS.get(name))

    def written(self, value: object) -> str:
        """What `{{ value }}` writes."""
        return self.made(value if isinstance(value, str) else str(value))

    def joined(self, pieces: Iterable[str]) -> str:
        """What a template, a macro or a block has written, piece by piece."""
        return self.made("".join(_counted(pieces)))

    def concatenated(self, autoescape: bool, values: tuple[object, ...]) -> str:
        """The values of a `~`, as text."""
        check_parts(sum(map(parts, values)))
        return self.made(markup_join(values) if autoescape else str_join(values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """See SandboxedEnvironment.call_binop."""
        check_growth(OPERATORS[operator], (left, right), {})
        return self.made(super().call_binop(context, operator, left, right))

    def call(self, context: Context, called: Any, /, *arguments: Any, **named: Any) -> Any:
        """See SandboxedEnvironment.call. Names of a caller's may be any, `context` too."""
        method = getattr(called, "__wrapped__", called)  # jinja2 wraps `format`
        owner, growth = getattr(method, "__self__", None), None
        if isinstance(owner, str | bytes | int):
            growth = METHODS.get(method.__name__)
        _, *arguments_seen = check_growth(growth, (owner, *arguments), named)
        return self.made(super().call(context, called, *arguments_seen, **named))

    def _limited(self, function: Callable[..., Any], growth: Growth | None) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or the environment

        @functools.wraps(function)
        def limited(*arguments: Any, **named: Any) -> Any:
            seen = check_growth(growth, arguments[first:], named)
            return self.made(function(*arguments[:first], *seen, **named))

        return limited


def _counted(pieces: Iterable[str]) -> Iterator[str]:
    count = 0
    for piece in pieces:
        count += len(piece)
        check_parts(count)
        yield piece
