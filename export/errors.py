"""What export/ can raise at its user.

ExportError             the user's fault: one line, exit 2
├── CheckpointError     the checkpoint is missing, truncated, or says something we do not honour
├── OptionError         an unknown scheme, target or format, or options that exclude each other
├── SpaceError          the output folder is not empty, or disk or memory will not do
├── DelegationError     the accelerator does not run every node, and that was required: exit 1
└── ArtifactError       a folder is not a whole artifact (raised by export.artifact)
"""

from __future__ import annotations


class ExportError(Exception):
    """The user's fault. The message says what was seen, what is allowed and what to do."""


class CheckpointError(ExportError):
    """The checkpoint cannot be exported as it is."""


class OptionError(ExportError):
    """An option is unknown or does not go with another."""


class SpaceError(ExportError):
    """There is no room for the artifact: folder, disk or memory."""


class DelegationError(ExportError):
    """A requirement is missed: nodes run outside the target's accelerator."""


class ArtifactError(ExportError):
    """The folder is not a whole artifact."""
