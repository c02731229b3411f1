"""What bench measures: an artifact of ours, or a model that another tool exported, in its own engine."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from devices.drivers.driver import Driver, Loading, Opened, Say
from devices.drivers.stock.driver import stock_driver
from devices.drivers.stock.runner import prompt_of_words
from devices.errors import DeviceError
from devices.measure.measurement import ArtifactFacts, StockFacts, describe_artifact
from export.artifact import Artifact, open_artifact, sha256_file
from runtimes.errors import EngineError
from runtimes.stock.model import StockModel
from runtimes.stock.table import STOCK, find_stock

Contender = Artifact | StockModel
NOT_KNOWN = "not known"


def open_contender(path: Path) -> Contender:
    """What is at a path. Raises ArtifactError, and DeviceError for another tool's model that no engine runs."""
    try:
        return find_stock(path) or open_artifact(path)
    except EngineError as error:
        raise DeviceError(str(error)) from error


def name_of(contender: Contender) -> str:
    """The folder's name; of a file without its suffix."""
    return contender.name if isinstance(contender, StockModel) else contender.folder.resolve().name


def path_of(contender: Contender) -> Path:
    """As the user named it."""
    return contender.path if isinstance(contender, StockModel) else contender.folder


def context_of(contender: Contender) -> int | None:
    """The longest sequence that it takes; None where it does not say so."""
    return contender.context_tokens if isinstance(contender, StockModel) else contender.manifest.context_tokens


def reference_of(contender: Contender) -> Mapping[str, Sequence[int]]:
    """The ids of a prompt and of the answer to it that the export's engine gave; empty where none is kept."""
    return {} if isinstance(contender, StockModel) else contender.manifest.reference or {}


def prompt_of(contender: Contender, count: int) -> list[int]:
    """The prompt: ordinary ids, the same for every model of one vocabulary and the same special ids. Raises DeviceError
    where there are none.

    Speed does not depend on which ids they are; ids need no tokenizer and give exactly `count`.
    """
    if isinstance(contender, StockModel):
        if contender.tokenizer is not None:
            return prompt_of_words(contender.tokenizer, count)
        assert contender.vocab_size is not None
        size, special = contender.vocab_size, contender.special_ids
    else:
        tokens, size = contender.manifest.tokens, contender.manifest.model.vocab_size
        special = frozenset(id_ for id_ in (tokens.bos, tokens.pad, *tokens.stop) if id_ is not None)
    ordinary = [id_ for id_ in range(size) if id_ not in special]
    if not ordinary:
        raise DeviceError(f"{path_of(contender)}: every token of its vocabulary of {size} is a special one")
    return random.Random(0).choices(ordinary, k=count)


def stage(driver: Driver, contender: Contender, say: Say) -> None:
    """Bring what the device lacks; another tool's model must be there. Raises DeviceError and TransportError."""
    if isinstance(contender, StockModel):
        stock_driver(driver, contender)
    else:
        driver.stage(contender, say)


def open_on(driver: Driver, contender: Contender, loading: Loading, tokens: int) -> Opened:
    """Load it in a fresh process. A stock engine gets a context of the `tokens` that are measured."""
    if isinstance(contender, StockModel):
        return stock_driver(driver, contender).open_stock(contender, loading, tokens)
    return driver.open(contender, loading)


@functools.lru_cache
def _sha256(file: Path, size: int, changed_ns: int) -> str:
    """Read once as long as size and time stay: it may have 40 GB, and every cell and measurement asks for it."""
    return sha256_file(file)


def facts_of(contender: Contender) -> ArtifactFacts:
    """What a measurement carries of it. The digest of another tool's model is over its files' names and bytes."""
    if not isinstance(contender, StockModel):
        return describe_artifact(contender)
    row, digest = STOCK[contender.engine], hashlib.sha256()
    for file in contender.files:
        seen = file.stat()
        digest.update(f"{file.name} {_sha256(file, seen.st_size, seen.st_mtime_ns)}\n".encode())
    return ArtifactFacts(
        name=contender.name,
        digest=digest.hexdigest(),
        format=row.format,
        target=NOT_KNOWN,
        scheme=contender.scheme or NOT_KNOWN,
        source=str(contender.path),
        model_type=contender.model_type or NOT_KNOWN,
        parameters=None,
        context_tokens=contender.context_tokens,
        artifact_bytes=sum(file.stat().st_size for file in contender.files),
        weights_bytes=None,
        kv_bytes_per_token=None,
        stock=StockFacts(engine=contender.engine, package=row.package, loop=row.loop, lacks=row.lacks),
    )
