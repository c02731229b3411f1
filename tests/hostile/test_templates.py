"""Chat templates that never end, grow without a bound, or write what looks like a mark: one line, in any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from runtimes.api import Message
from runtimes.errors import EngineError, RequestError
from runtimes.text import template
from runtimes.text.template import ChatTemplate

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
MACROS = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
DOUBLING = "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}"
SQUARING = "{% set n = namespace(s=9) %}{% for i in range(60) %}{% set n.s = n.s * n.s %}{% endfor %}"


def render(source: str) -> str:
    return "".join(piece.text for piece in ChatTemplate(source, {}).render([Message("user", "Hello")]))


@pytest.mark.parametrize("source", [LOOPS, MACROS])
def test_a_template_has_a_time_limit_in_any_thread(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "RENDER_S", 0.1)
    with ThreadPoolExecutor(1) as pool, pytest.raises(RequestError, match="takes longer than"):
        pool.submit(render, source).result()


@pytest.mark.parametrize(
    "source", [DOUBLING, SQUARING, "{{ 'a' * 10 ** 11 }}", "{{ [1] * 10 ** 11 }}", "{{ 9 ** (9 ** 9) }}"]
)
def test_what_a_template_makes_has_a_limit(source: str) -> None:
    with pytest.raises(RequestError, match="parts"):
        render(source)


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{{ 'a'.index('b') }}", "{{ [] + 1 }}", "{{ lipsum(n=10 ** 6) }}"])
def test_a_template_that_fails_is_a_refusal(source: str) -> None:
    with pytest.raises(RequestError, match="refuses these messages"):
        render(source)


@pytest.mark.parametrize("source", ["{{ " + "(" * 5000, "{{ " + "9" * 5000 + " }}", "{% break %}"])
def test_a_template_that_python_cannot_compile_cannot_be_read(source: str) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        render(source)


def test_what_looks_like_a_mark_is_text() -> None:
    assert render("{{ messages[0].content }}\ue00099\ue001") == "Hello\ue00099\ue001"
