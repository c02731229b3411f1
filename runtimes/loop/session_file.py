"""A session's KV cache as a file, so that a long prompt that was read once need not be read again after a restart.

A numpy archive: the ids that were computed, and one array for each layer's keys and values, [kv_heads, ids, head_dim];
with a sliding window perhaps those of the last ids alone. It fits the artifact that it was made with and no other,
whose digest it has.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtimes.errors import RequestError

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class SessionFile:
    """What a file has. `long`: the keys were computed with the long rope factors."""

    artifact: str
    adapter: str | None
    ids: Sequence[int]
    long: bool
    parts: Sequence[npt.NDArray[Any]]


def write_session(path: Path, content: SessionFile) -> None:
    """Write the whole file or nothing."""
    import numpy as np

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    arrays: dict[str, Any] = {f"part_{number}": array for number, array in enumerate(content.parts)}
    arrays |= {"artifact": content.artifact, "adapter": content.adapter or "", "long": content.long}
    arrays["ids"] = np.array(content.ids, np.int64)
    try:
        with part.open("wb") as out:
            np.savez(out, **arrays)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_session(path: Path, artifact: str) -> SessionFile:
    """Raises RequestError for a file that is none, or that was made with another artifact than `artifact`."""
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            made_with = str(archive["artifact"])
            if made_with != artifact:
                raise RequestError(
                    f"{path}: was saved with the artifact {made_with:.12}, this one is {artifact:.12}; save it again"
                )
            return SessionFile(
                artifact=made_with,
                adapter=str(archive["adapter"]) or None,
                ids=[int(id) for id in archive["ids"]],
                long=bool(archive["long"]),
                parts=[archive[f"part_{number}"] for number in range(len(archive.files) - 4)],
            )
    except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise RequestError(f"{path}: is no saved session ({error}); save it again") from error
