"""JavaScript libraries that a bundle ships: packages of npm at pinned versions, checked by their hashes.

They are downloaded once into a cache, or read from a folder that has what `npm pack` downloads. Nothing else comes from
the network, and no program of a package is run.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtimes.errors import RequestError
from runtimes.system.cache_folder import cache_folder

REGISTRY = "https://registry.npmjs.org"
DOWNLOAD_S = 60.0  # of silence
MOST_BYTES = 100_000_000  # of a package


@dataclass(frozen=True, kw_only=True)
class Library:
    """A package: its files that a bundle needs, and its hash as npm's registry publishes it."""

    name: str
    version: str
    licence: str
    integrity: str  # SHA-512, in base64
    files: Sequence[str]  # paths in the package

    @property
    def archive(self) -> str:
        """The name that `npm pack` gives the package's file."""
        return f"{self.folder}-{self.version}.tgz"

    @property
    def folder(self) -> str:
        """The name of its folder in a bundle."""
        return self.name.lstrip("@").replace("/", "-")

    @property
    def npm(self) -> str:
        """The command that downloads it."""
        return f"npm pack {self.name}@{self.version}"

    @property
    def url(self) -> str:
        return f"{REGISTRY}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"


WEB_LIBRARIES = (
    Library(
        name="onnxruntime-web",
        version="1.30.0",
        licence="MIT",
        integrity="q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        files=(
            "dist/ort.webgpu.min.mjs",
            "dist/ort-wasm-simd-threaded.asyncify.mjs",
            "dist/ort-wasm-simd-threaded.asyncify.wasm",
        ),
    ),
    Library(
        name="@huggingface/tokenizers",
        version="0.2.0",
        licence="Apache-2.0",
        integrity="LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        files=("dist/tokenizers.min.mjs", "LICENSE"),
    ),
    Library(
        name="@huggingface/jinja",
        version="0.5.11",
        licence="MIT",
        integrity="YzEzwM5oQf4r0vs7ifWQ+yuVR1YkAHrjERQ+a8WRsStHHp4NRBg+NesjiFc+X2AFUpRvvrIeHDS1xFy9jY/IjQ==",
        files=("dist/index.js", "LICENSE"),
    ),
)


def library_files(libraries: Sequence[Library], folder: Path | None) -> dict[str, bytes]:
    """Path in the bundle's folder lib -> content. `folder` has the packages' files; None: the cache, which is filled
    from npm's registry. Raises RequestError."""
    # Not every server knows that .mjs is JavaScript, and a browser takes a module for nothing else.
    return {
        f"{library.folder}/{Path(name).name.replace('.mjs', '.js')}": content
        for library in libraries
        for name, content in _unpack(library, _archive(library, folder)).items()
    }


def _archive(library: Library, folder: Path | None) -> bytes:
    """The package's file, verified."""
    given = (folder or _cache()) / library.archive
    try:
        content = given.read_bytes()
    except FileNotFoundError:
        if folder is not None:
            raise RequestError(
                f"{given}: is not there; get it with `npm pack {library.name}@{library.version}`"
            ) from None
    except OSError as error:
        raise RequestError(f"{given}: cannot be read ({error.strerror})") from error
    else:
        if _is_package(library, content):
            return content
        if folder is not None:
            raise RequestError(
                f"{given}: is not the package that npm publishes (its SHA-512 differs); get it with `{library.npm}`"
            )
    content = _download(library)
    _keep(given, content)
    return content


def _download(library: Library) -> bytes:
    try:
        with urllib.request.urlopen(library.url, timeout=DOWNLOAD_S) as response:
            content: bytes = response.read(MOST_BYTES)
    except (OSError, urllib.error.URLError) as error:
        raise RequestError(
            f"{library.url}: cannot be downloaded ({error}); try again, or give a folder with what `npm pack` "
            "downloads to --libraries"
        ) from error
    if not _is_package(library, content):
        raise RequestError(f"{library.url}: its SHA-512 is not the one that we know; nothing of it is used")
    return content


def _keep(path: Path, content: bytes) -> None:
    """For the next bundle: aside, then renamed, so that another process never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _unpack(library: Library, archive: bytes) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as package:
        for name in library.files:
            member = package.extractfile(f"package/{name}")
            assert member is not None  # the hash says which package it is
            found[name] = member.read()
    return found


def _is_package(library: Library, content: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(content).digest()).decode() == library.integrity


def _cache() -> Path:
    return cache_folder() / "npm"
