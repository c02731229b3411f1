"""Where each node of a graph will run: on the target's accelerator, or outside it on the CPU.

For ExecuTorch it is read from the program itself. For DirectML, WebGPU and CUDA it is what the form is built for; ci/
and tests/ compare that with the placements that the real provider logs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# The width of the mask as a number, which GroupQueryAttention wants in the CPU's memory; on CUDA it is the same.
DIRECTML_LENGTHS = frozenset(["/lengths/Gather", "/lengths/total/Cast"])
# The lengths and, with long rope, which rows of the tables they choose: 64-bit numbers, a handful for each call.
WEBGPU_LENGTHS = ("/lengths/", "/rope/")
WEBGPU_FLOAT = "/FusedMatMul"  # how a name ends: the products of a model that is not quantised, for tests


@dataclass(frozen=True)
class Coverage:
    """`counts`: place -> operator -> how many nodes. `outside` names those that the accelerator does not run."""

    counts: Mapping[str, Mapping[str, int]]
    outside: tuple[str, ...] = ()


def onnx_coverage(nodes: Iterable[tuple[str, str]], provider: str) -> Coverage:
    """(name, operator) of every node. On the CPU's own target nothing is outside."""
    pairs = list(nodes)
    if not provider:
        return Coverage({"CPUExecutionProvider": _count(operator for _, operator in pairs)})
    accelerator, is_outside = _ACCELERATORS[provider]
    outside = [pair for pair in pairs if is_outside(pair[0])]
    counts = {accelerator: _count(operator for node, operator in pairs if not is_outside(node))}
    if outside:
        counts["CPUExecutionProvider"] = _count(operator for _, operator in outside)
    return Coverage(counts, tuple(f"{name} ({operator})" for name, operator in outside))


# A target's provider -> its name in ONNX Runtime, and which nodes, by their names, it leaves to the CPU.
_ACCELERATORS: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "dml": ("DmlExecutionProvider", DIRECTML_LENGTHS.__contains__),
    "cuda": ("CUDAExecutionProvider", DIRECTML_LENGTHS.__contains__),
    "webgpu": ("WebGpuExecutionProvider", lambda node: node.startswith(WEBGPU_LENGTHS) or node.endswith(WEBGPU_FLOAT)),
}


def executorch_coverage(program: Any) -> Coverage:
    """An ExecuTorch program's `forward`: its delegates, and the operators that it calls between them."""
    (plan,) = (plan for plan in program.execution_plan if plan.name == "forward")
    delegates: list[str] = []
    called: list[str] = []
    for chain in plan.chains:
        for instruction in chain.instructions:
            arguments = instruction.instr_args
            match type(arguments).__name__:
                case "DelegateCall":
                    delegates.append(plan.delegates[arguments.delegate_index].id)
                case "KernelCall":
                    operator = plan.operators[arguments.op_index]
                    called.append(operator.name)
    counts: dict[str, Mapping[str, int]] = {name: {"delegate": number} for name, number in _count(delegates).items()}
    portable = _count(called)
    if portable:
        counts["portable"] = portable
    return Coverage(counts, tuple(f"{name} ({number} times)" for name, number in portable.items()))


def _count(operators: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(operators).items()))
