"""What an export asks for before it seals: somebody who can run the artifact. `export/` loads no engine itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from export.artifact import Artifact, Format


@dataclass(frozen=True)
class Proof:
    """A folder that runs."""

    remarks: Sequence[str]  # what whoever exports should know
    reference: Mapping[str, Sequence[int]] | None = None  # for the manifest


class Prover(Protocol):
    """Runs the result of an export: phi_edge.proof has one. What it refuses is not sealed."""

    def prepare(self, folder: Path, format: Format) -> None:
        """Before the work: read the tokenizer and the chat template in `folder` as the runtimes do, and see whether the
        format's engine is installed. What can be loaded without the artifact may be loaded from now on.

        Raises ExportError."""
        ...

    def run(self, artifact: Artifact) -> Proof:
        """Open the artifact, whose manifest is not written yet, and generate.

        Raises ProofError for what the engine does not run, SpaceError where it was killed."""
        ...
