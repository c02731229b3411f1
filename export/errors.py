"""What export/ can raise.

ExportError             one line for the user, exit code 2
├── CheckpointError     the checkpoint is missing, truncated, or has something that we do not support
│   └── NumbersError    it has numbers that this target cannot have: found on the way, and again in every try
├── AdapterError        a LoRA adapter is none, or does not fit the base
├── OptionError         an unknown scheme, target or format, or options that exclude each other
├── SpaceError          the output folder is not empty, or disk or memory is too small
├── ProofError          the engine does not run what was exported: it was not sealed
├── DelegationError     the accelerator does not run every node, and that was required: exit code 1
└── ArtifactError       a folder is not a whole artifact (raised by export.artifact)
"""

from __future__ import annotations


class ExportError(Exception):
    """Something that the user can fix. The message says what was seen, what is allowed and what to do."""


class CheckpointError(ExportError):
    """The checkpoint cannot be exported as it is."""


class NumbersError(CheckpointError):
    """The checkpoint's weights, or what they compute, do not fit the target's types."""


def not_finite(tensor: str) -> NumbersError:
    """The error for a tensor with NaN or infinite weights."""
    return NumbersError(f"{tensor}: holds weights that are not finite; download the checkpoint again")


class AdapterError(ExportError):
    """The adapter cannot be merged into this base."""


class OptionError(ExportError):
    """An option is unknown or excludes another."""


class SpaceError(ExportError):
    """There is no room for the artifact: folder, disk or memory."""


class ProofError(ExportError):
    """The engine does not run what was exported."""


class DelegationError(ExportError):
    """A requirement is not met: nodes run outside the target's accelerator."""


class ArtifactError(ExportError):
    """The folder is not a whole artifact."""
