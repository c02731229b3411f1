"""Chat templates that never end, grow without a bound, or write what looks like a mark: one line, in any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from export.template import allowance
from runtimes.api import Message
from runtimes.errors import EngineError, RequestError
from runtimes.text.template import ChatTemplate

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
MACROS = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
DOUBLING = "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}"
SQUARING = "{% set n = namespace(s=9) %}{% for i in range(60) %}{% set n.s = n.s * n.s %}{% endfor %}"


def render(source: str) -> str:
    return "".join(piece.text for piece in ChatTemplate(source, {}).render([Message("user", "Hello")]))


@pytest.mark.parametrize("source", [LOOPS, MACROS])
def test_a_template_has_a_time_limit_in_any_thread(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "RENDER_S", 0.1)
    with ThreadPoolExecutor(1) as pool, pytest.raises(RequestError, match="takes longer than"):
        pool.submit(render, source).result()


LARGE = "{% set s = 'x' * 9000000 %}{% set n = namespace(l=[], s='') %}"
GROWING = (
    DOUBLING, DOUBLING.replace("+", "~"), SQUARING, "{{ 'a' * 10 ** 11 }}", "{{ [1] * 10 ** 11 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 'a' | center(10 ** 10) }}", "{{ 'a'.center(10 ** 10) }}", "{{ 'a'.ljust(10 ** 10) }}",
    "{{ 'a'.rjust(10 ** 10) }}", "{{ '1'.zfill(10 ** 10) }}", "{{ ('\t' * 9999).expandtabs(10 ** 6) }}",
    "{{ ('a' * 9999).replace('a', 'b' * 9999) }}", "{{ ('a' * 9999).replace('', 'b' * 9999) }}",
    "{{ ('a' * 9999) | replace('a', 'b' * 9999) }}", "{{ ('b' * 99999).join(['a'] * 999) }}",
    "{{ (['a'] * 999) | join('b' * 99999) }}", "{{ (['a'] * 999) | map('upper') | join('b' * 99999) }}",
    "{{ ('b' * 99999).join((['a'] * 999) | map('upper')) }}",
    "{{ '%1000000000d' % 1 }}", "{{ '%*d' % (10 ** 9, 1) }}", "{{ '%(n)1000000000d' % {'n': 1} }}",
    "{{ '%(n(1))1000000000d' % {'n(1)': 1} }}", "{{ '%.1000000000f' % 1 }}", "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}", "{{ '{:{}}'.format(1, 10 ** 9) }}",
    "{{ '{a:{b}}'.format_map({'a': 1, 'b': 10 ** 9}) }}",
    "{{ ('{0}' * 9999).format('a' * 9999) }}", "{{ ('%(a)s' * 9999) % {'a': 'a' * 9999} }}",
    "{{ ('a' * 9999).translate({97: 'b' * 9999}) }}", "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "{{ ('\n' * 9999) | indent(9999) }}", "{{ ('\n' * 9999) | indent('a' * 9999) }}",
    "{{ ('a ' * 9999) | wordwrap(1, wrapstring='b' * 9999) }}", "{{ [1] | batch(10 ** 9, 0) | list }}",
    "{{ [1] | slice(10 ** 9) | list }}", "{{ 1.5 | round(10 ** 9, 'floor') }}",
    "{{ ([[1]] * 9999) | tojson(indent=9999) }}", "{{ ('a.de ' * 9999) | urlize(target='b' * 9999) }}",
    "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
    "{% set n = namespace(l=(1,)) %}{% for i in range(60) %}{% set n.l = (n.l, n.l) %}{% endfor %}{{ n.l }}",
    "{% set n = namespace(l=1) %}{% for i in range(60) %}{% set n.l = {1: n.l, 2: n.l} %}{% endfor %}{{ n.l }}",
    "{% set n = namespace(l=1) %}{% for i in range(60) %}{% set n.l = dict(a=n.l, b=n.l) %}{% endfor %}{{ n.l }}",
    LARGE + "{% for i in range(99999) %}{{ s }}{% endfor %}",
    LARGE + "{% macro m() %}{% for i in range(9999) %}{{ s }}{% endfor %}{% endmacro %}{% if m() %}{% endif %}",
    LARGE + "{% set t %}{% for i in range(9999) %}{{ s }}{% endfor %}{% endset %}",
)  # fmt: skip
KEEPING = (
    LARGE + "{% for i in range(9999) %}{% set n.l = n.l + [s ~ i] %}{% endfor %}",
    LARGE + "{% for i in range(9999) %}{% set n.l = n.l + [s[1:]] %}{% endfor %}",
    LARGE + "{% for i in range(9999) %}{% set n.l = n.l + [s.upper()] %}{% endfor %}",
    LARGE + "{% for i in range(9999) %}{% set n.l = n.l + [s | upper] %}{% endfor %}",
    LARGE + "{{ (['x'] * 9999) | map('center', 9000000) | list }}",
)


@pytest.mark.parametrize("source", GROWING)
def test_what_a_template_makes_has_a_limit(source: str) -> None:
    with pytest.raises(RequestError, match=r"of more than \d+ parts|more than \d+ MiB"):
        render(source)


@pytest.mark.parametrize("source", KEEPING)
def test_all_that_a_template_makes_has_a_limit(source: str) -> None:
    with pytest.raises(RequestError, match=r"more than \d+ (MiB|parts)"):
        render(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '%s is %d' % ('a', 1700000000) }}", "a is 1700000000"),
        ("{{ '20240101 100%% %(n)s' % {'n': 'a'} }}", "20240101 100% a"),
        ("{{ '{{}} {} {}'.format('a', 1700000000) }}", "{} a 1700000000"),
        ("{{ '{:>4}|{a:<3}|{:{}}'.format('a', 'b', 3, a='c') }}", "   a|c  |b  "),
        ("{{ 'a' ~ 1 ~ none }}", "a1None"),
        ("{{ ['a', 'b'] | map('upper') | join('-') }}", "A-B"),
        ("{{ '-'.join(['a', 'b'] | map('upper')) }}", "A-B"),
        ("{{ [1, 2, 3] | batch(2, 0) | list }}", "[[1, 2], [3, 0]]"),
        ("{{ {'a': [1, 2]} | tojson(indent=2) }}", '{\n  "a": [\n    1,\n    2\n  ]\n}'),
        ("{% for a, b in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}{{ 'abc'[1:] }}{{ [1, 2][:1] }}", "12bc[1]"),
        ("{{ 'a b' | wordwrap(1) | indent(2) }}{{ 2.567 | round(1) }}{{ 'x' | center(3) }}", "a\n  b2.6 x "),
        ("{{ 'aXb'.replace('X', '-') | replace('-', '+') }}{{ 7 % 4 }}{{ (65).to_bytes(1, 'big') }}", "a+b3b'A'"),
    ],
)  # fmt: skip
def test_ordinary_operations_are_done(source: str, text: str) -> None:
    assert render(source + "{{ messages[0].content }}") == text + "Hello"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}", "{{ 'a'.index('b') }}", "{{ [] + 1 }}", "{{ lipsum(n=10 ** 6) }}", "{{ range(10 ** 9) | list }}",
        "{{ 10 ** 5000 }}", "{% include 'x' %}", "{% import 'x' as y %}", "{{ messages[99].content.x }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ messages | map('x') | list }}",
    ],
)  # fmt: skip
def test_a_template_that_fails_is_a_refusal(source: str) -> None:
    with pytest.raises(RequestError, match="refuses these messages"):
        render(source)


@pytest.mark.parametrize("source", ["{{ " + "(" * 5000, "{{ " + "9" * 5000 + " }}", "{% break %}"])
def test_a_template_that_python_cannot_compile_cannot_be_read(source: str) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        render(source)


def test_what_looks_like_a_mark_is_text() -> None:
    assert render("{{ messages[0].content }}\ue00099\ue001") == "Hello\ue00099\ue001"
