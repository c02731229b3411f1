"""What an ExecuTorch program has, read from its file without its weights."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.coverage import executorch_coverage
from export.errors import ArtifactError

FORWARD = "forward"


@dataclass(frozen=True)
class Program:
    """`constants`: method -> the values that it returns. `coverage`: place -> operator -> how many calls."""

    constants: Mapping[str, tuple[Any, ...]]
    coverage: Mapping[str, Mapping[str, int]]

    def number(self, name: str) -> int | None:
        """The one number that a constant method returns; None without it."""
        values = self.constants.get(name, ())
        return values[0] if values and type(values[0]) is int else None

    def called(self) -> Mapping[str, int]:
        """The operators that the program calls itself, outside of every delegate."""
        return self.coverage.get("portable", {})


def read_program(path: Path) -> Program:
    """The program of a .pte file. Raises ArtifactError."""
    from export.to_executorch.internals import stored_program

    try:
        program = stored_program(path)
        if not any(plan.name == FORWARD for plan in program.execution_plan):
            raise ArtifactError(f"{path}: has no method `forward`; only programs of a language model can be examined")
        constants = {plan.name: _returned(plan) for plan in program.execution_plan if plan.name != FORWARD}
        return Program(constants, executorch_coverage(program).counts)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); give a folder whose files can be") from error
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise ArtifactError(f"{path}: is not an ExecuTorch program; export it again") from error


def _returned(plan: Any) -> tuple[Any, ...]:
    """The numbers and flags that a method returns, which has no inputs."""
    values = (plan.values[output].val for output in plan.outputs)
    fields = ("int_val", "bool_val", "double_val", "string_val")
    return tuple(getattr(value, field) for value in values for field in fields if hasattr(value, field))
