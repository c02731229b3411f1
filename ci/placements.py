"""Where onnxruntime put each node, read from its verbose log, and what is wrong with that.

It reads placements; it does not know whether a provider's kernel can be made or gives the right numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# What GroupQueryAttention wants in the CPU's memory: the width of the mask, as a number.
LENGTHS = frozenset(["/lengths/Shape", "/lengths/Gather", "/lengths/total/Cast"])
_SINGLE = re.compile(r" All nodes placed on \[(\w+)\]\. Number of nodes: (\d+)")
_PROVIDER = re.compile(r" Node\(s\) placed on \[(\w+)\]\. Number of nodes: (\d+)")
_NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s+(\w+) \(([^)]*)\)")


class PlacementError(Exception):
    """The log has no placements, or not all that it announces."""


@dataclass(frozen=True)
class Placement:
    """One node and the execution provider that runs it."""

    node: str
    operator: str
    provider: str


def read_placements(log: str) -> list[Placement]:
    """The last session's placements. Raises PlacementError."""
    _, found, tail = log.rpartition("] Node placements")
    if not found:
        raise PlacementError("the log has no 'Node placements': was the session made, and its log verbose?")
    placements: list[Placement] = []
    provider, expected = "", 0
    for line in tail.splitlines():
        if match := _SINGLE.search(line):
            # Then the log names none of them.
            return [Placement(f"node {number}", "unnamed", match[1]) for number in range(int(match[2]))]
        if match := _PROVIDER.search(line):
            provider, expected = match[1], expected + int(match[2])
        elif provider and (match := _NODE.search(line)):
            placements.append(Placement(match[2], match[1], provider))
    if len(placements) != expected:
        raise PlacementError(f"the log announces {expected} nodes and names {len(placements)}")
    return placements


def fallen_back(placements: Sequence[Placement], provider: str, allowed: frozenset[str] = LENGTHS) -> list[Placement]:
    """The nodes that are not on `provider` and have no leave to be elsewhere."""
    return [item for item in placements if item.provider != provider and item.node not in allowed]


def count(placements: Sequence[Placement]) -> Mapping[str, Mapping[str, int]]:
    """provider -> operator -> how many."""
    counts: dict[str, dict[str, int]] = {}
    for item in placements:
        operators = counts.setdefault(item.provider, {})
        operators[item.operator] = operators.get(item.operator, 0) + 1
    return counts
