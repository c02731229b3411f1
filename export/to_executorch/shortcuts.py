"""Work of ExecuTorch and torch that changes nothing in our programs, left out while they are made.

tests/test_export_executorch_internals.py compares the bytes with and without each of these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def few_passes() -> Iterator[None]:
    """While a piece goes to edge dialect: only the passes that change something in one. Each of the others runs the
    graph again, and changes views, symbols as tensors, or mixed types, of which a piece has none."""
    from executorch.exir import passes
    from executorch.exir.program import _program

    stock = _program._get_aten_to_edge_passes
    kinds = (passes.ReplaceSymSizeOpPass, passes.ScalarToTensorPass, passes.RemoveNoopPass, passes.RemoveToCopyPass)
    with mock.patch.object(_program, stock.__name__, lambda config: ([kind() for kind in kinds], stock(config)[1])):
        yield


@contextlib.contextmanager
def one_removal() -> Iterator[None]:
    """While a program is composed: stock, the pass that puts operators that write back into the program's graph does so
    once for every branch of a cond, which are not changed. With 32 rings that took 11 s instead of 1 s."""
    from executorch.exir.program import _program

    stock = _program.unsafe_remove_auto_functionalized_pass

    def once(program: Any) -> Any:
        graph = program.graph_module
        graph.modules = lambda: iter([graph])
        try:
            return stock(program)
        finally:
            del graph.modules

    with mock.patch.object(_program, stock.__name__, once):
        yield


@contextlib.contextmanager
def unchecked_branches() -> Iterator[None]:
    """While a program is composed: stock, torch traces the branches of a cond four times more at each step, to learn
    whether they write to what they read. Ours (ring.py) do not."""
    from torch._higher_order_ops import auto_functionalize, utils

    stock = auto_functionalize.can_auto_functionalize
    with (
        mock.patch.object(utils.HopInstance, "create", lambda *_: None),
        mock.patch.object(auto_functionalize, "can_auto_functionalize", lambda op: op is not None and stock(op)),
        mock.patch.object(utils, "_check_alias_and_mutation", lambda *_: None),
    ):
        yield
