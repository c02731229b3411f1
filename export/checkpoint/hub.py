"""A checkpoint of the hub before its weights are downloaded: enough of it to judge every option, and to plan.

The outline is a folder with the small files and, of each shard, the header alone, in a file that has the shard's size
and no content. Everything that opens a checkpoint reads it as it reads a whole one; nobody may read weights from it.
"""

from __future__ import annotations

import fnmatch
import os
import re
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.checkpoint.find import HUB_ID, first_line, weights_reason
from export.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

SHARD = "*.safetensors"
HEADER_BYTES = 100_000_000  # the format's own limit
FIRST_BYTES = 128 << 10  # of a shard; nearly all headers are shorter
ANSWER_S = 30.0  # the longest silence of the hub


def hub_id(where: str) -> re.Match[str] | None:
    """The parts of `owner/name` or `owner/name@revision`; None for what is there as a path."""
    found = HUB_ID.fullmatch(where)
    return None if found is None or Path(where).exists() else found


@contextmanager
def outline(where: str, patterns: Sequence[str]) -> Iterator[Path | None]:
    """A temporary folder with the outline of a hub id; of its files, those of `patterns` alone.

    None where nothing is gained: the hub cannot be reached, or all is in its cache already. Raises CheckpointError
    where the hub refuses.
    """
    found = hub_id(where)
    assert found is not None
    info = _describe(where, found["name"], found["revision"])
    if info is not None and not any(fnmatch.fnmatch(name, SHARD) for name, _ in _files(info, patterns)):
        names = [file.rfilename for file in info.siblings or ()]
        raise CheckpointError(f"{where}: has {weights_reason(names)}")
    if info is None or _is_cached(info, patterns):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="phi-edge-") as temporary:
        folder = Path(temporary) / found["name"].partition("/")[2]
        folder.mkdir()
        try:
            _fill(folder, info, patterns)
        except OSError as error:  # the hub's errors and the network library's are such
            raise CheckpointError(f"{where}: cannot be read from the hub ({first_line(error)}); try again") from error
        yield folder


def _describe(where: str, name: str, revision: str | None) -> ModelInfo | None:
    """The repository's files and commit; None where the hub cannot be reached. Raises CheckpointError."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        api = HfApi(endpoint=constants.ENDPOINT)
        return api.model_info(name, revision=revision, files_metadata=True, timeout=ANSWER_S)
    except GatedRepoError as error:
        raise CheckpointError(
            f"{where}: its owner asks you to accept terms first: do that on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{where}: no such folder here, and the hub has no such repository, or it is private: check the spelling, "
            "or `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{where}: {name} has no revision {revision}; leave it out for the newest") from error
    except HFValidationError as error:
        raise CheckpointError(f"{where}: no such folder, and no hub id ({first_line(error)})") from error
    except HfHubHTTPError:
        return None  # the hub is ill; what is in its cache may do
    except OSError:
        return None
    except Exception as error:
        if "httpx" in type(error).__module__:  # the network library's, which is another in each version of the hub's
            return None
        raise


def _is_cached(info: ModelInfo, patterns: Sequence[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return all(
        isinstance(try_to_load_from_cache(info.id, name, revision=info.sha), str) for name, _ in _files(info, patterns)
    )


def _files(info: ModelInfo, patterns: Sequence[str]) -> list[tuple[str, int]]:
    """Name and bytes of the files that an export reads: those beside config.json alone."""
    return [
        (file.rfilename, file.size or 0)
        for file in info.siblings or ()
        if "/" not in file.rfilename and any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in patterns)
    ]


def _fill(folder: Path, info: ModelInfo, patterns: Sequence[str]) -> None:
    from huggingface_hub import hf_hub_download

    for name, size in _files(info, patterns):
        if fnmatch.fnmatch(name, SHARD):
            _write_header(folder / name, _read_start(info, name), size)
        else:
            (folder / name).symlink_to(hf_hub_download(info.id, name, revision=info.sha))


def _read_start(info: ModelInfo, name: str) -> bytes:
    """A shard's first 8 bytes and the header whose length they give, and no more."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    session: Any = get_session()
    url, headers = hf_hub_url(info.id, name, revision=info.sha), build_hf_headers()
    start, end = b"", FIRST_BYTES
    while len(start) < end:
        asked = headers | {"Range": f"bytes={len(start)}-{end - 1}"}
        with session.stream("GET", url, headers=asked, timeout=ANSWER_S) as response:
            hf_raise_for_status(response)
            more = next(response.iter_bytes(end - len(start)), b"")
        start += more
        if not more or len(start) < 8:
            break  # shorter than a header: the shard's reader will say so
        end = 8 + min(struct.unpack("<Q", start[:8])[0], HEADER_BYTES)
    return start[:end]


def _write_header(path: Path, start: bytes, size: int) -> None:
    path.write_bytes(start)
    os.truncate(path, max(size, len(start)))
