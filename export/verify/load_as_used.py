"""A model's weights while they are used: each layer reads its own just before it runs and forgets them afterwards.

So a float model of any size runs in the memory of its largest matrix. The price is that every pass reads them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from export.system import trim_heap


def load_as_used(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Let every layer of a model without weights (torch's meta device) take its parameters from `weights` when it runs.

    Raises KeyError, when that layer runs, for a parameter that is not among them.
    """

    def load(path: str, names: list[str]) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, _inputs: Any) -> None:
            for name in names:
                module.register_parameter(name, nn.Parameter(weights[f"{path}.{name}"], requires_grad=False))

        return hook

    def forget(names: list[str]) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _inputs: Any, _output: Any) -> None:
            for name in names:
                empty = torch.empty_like(getattr(module, name), device="meta")
                module.register_parameter(name, nn.Parameter(empty, requires_grad=False))
            trim_heap()

        return hook

    for path, module in model.named_modules():
        if names := [name for name, _ in module.named_parameters(recurse=False)]:
            module.register_forward_pre_hook(load(path, names))
            module.register_forward_hook(forget(names))
