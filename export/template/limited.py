"""A compiled chat template, in a sandbox: it comes with the model and may be anyone's, so each rendering ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.template.allowance import Allowance
from export.template.language import make_environment

if TYPE_CHECKING:
    import jinja2


class LimitedTemplate:
    """Both methods raise whatever a template's author can make jinja2 and Python raise, and TimeoutError or
    OverflowError where a rendering takes too much."""

    def __init__(self, source: str) -> None:
        self._allowance = Allowance()
        self._allowance.start()
        self._template = _compiled(source, self._allowance)

    def render(self, **values: Any) -> str:
        """The text, of these values for the template's names."""
        self._allowance.start()
        return self._template.render(values)


def _compiled(source: str, allowance: Allowance) -> jinja2.Template:
    """It looks at the clock in every round of a loop and every call of a macro, so it ends in any thread and on every
    system."""
    from jinja2 import nodes

    environment = make_environment(allowance)
    environment.extend(check_time=allowance.check_time)
    tree = environment.parse(source)
    blocks: list[nodes.For | nodes.Macro | nodes.CallBlock] = [*tree.find_all(nodes.For), *tree.find_all(nodes.Macro)]
    for block in [*blocks, *tree.find_all(nodes.CallBlock)]:
        call = nodes.Call(nodes.EnvironmentAttribute("check_time"), [], [], None, None)
        block.body.insert(0, nodes.ExprStmt(call).set_lineno(block.lineno).set_environment(environment))
    code = environment.compile(tree)
    return environment.template_class.from_code(environment, code, environment.make_globals(None))
