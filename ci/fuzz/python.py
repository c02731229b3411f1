"""`python ci/fuzz/python.py TARGET [FLAG...] [FILE or FOLDER...]`: atheris on one boundary; one FILE is tried again.

The flags are libFuzzer's. A folder keeps the inputs that reach something new. `make fuzz` starts one for each target.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # run as a file, python puts ci/fuzz there

import atheris  # noqa: E402 - after the path

ROOMS = ["devices", "export", "phi_edge", "runtimes"]
COMPILED = ["export.weights"]  # numba compiles its bytecode, which must stay as it is

with atheris.instrument_imports(include=ROOMS, exclude=COMPILED):
    from hostile.cheap import little_memory, make_cheap

    from ci.fuzz.targets import TARGETS, Target


class Fault(Exception):
    """An outcome that must not be."""


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name, *words = sys.argv[1:]
    if name not in TARGETS:
        sys.exit(f"unknown target {name!r}; known: {', '.join(TARGETS)}")
    target = TARGETS[name]
    folder, seeds = (Path(tempfile.mkdtemp(prefix="phi-edge-fuzz-")) for _ in range(2))
    words = [word if word.startswith("-") else str(Path(word).resolve()) for word in words]
    os.chdir(folder)
    make_cheap(setattr)
    with little_memory():
        with atheris.instrument_imports(include=ROOMS, exclude=COMPILED):  # what is imported late
            for number, seed in enumerate(target.seeds()):
                (seeds / str(number)).write_bytes(seed)
                _try(target, seed, folder)
        if not any(Path(word).is_file() for word in words):
            words.append(str(seeds))
        atheris.Setup(
            [sys.argv[0], *words],
            lambda data: _try(target, data, folder),
            custom_mutator=lambda data, most, seed: target.form(data, most, random.Random(seed), atheris.Mutate),
        )
        atheris.Fuzz()


def _try(target: Target, data: bytes, folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if (found := target.outcome(data, folder)) is not None:
        raise Fault(found)


if __name__ == "__main__":
    main()
