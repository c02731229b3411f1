"""`python ci/fuzz/fuzz.py [TARGET...] --seconds 60`: fuzz each boundary at which foreign bytes are read, one after the
other. Python's are fuzzed by atheris, the native agent by libFuzzer with sanitizers. `make fuzz` runs it.

An input that ends badly is kept in build/fuzz/TARGET, and printed with the command that tries it again. The inputs that
reached something new are kept there, too, and the next run begins with them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a file, python puts ci/fuzz there

from ci.fuzz import native  # noqa: E402

OUT = ROOT / "build" / "fuzz"
PYTHON = (
    "manifest", "config", "header", "tokenizer", "template", "measurement", "score", "budget", "lab", "said", "command",
    "body",
)  # fmt: skip
FLAGS = ("-max_len=262144", "-len_control=0", "-timeout=60", "-rss_limit_mb=8192", "-print_final_stats=1")
START_S = 300  # for imports and seeds, on a busy machine
FOUND = ("crash-", "timeout-", "oom-", "leak-", "slow-unit-")


def main() -> None:
    """Prints a line for each target. Exit 1 where an input ended badly."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join((*PYTHON, *native.TARGETS)))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    options = parser.parse_args()
    targets = options.targets or [*PYTHON, *native.TARGETS]
    if unknown := [name for name in targets if name not in (*PYTHON, *native.TARGETS)]:
        parser.error(f"unknown target {unknown[0]!r}; known: {', '.join((*PYTHON, *native.TARGETS))}")
    variables: Mapping[str, str] = {}
    if any(name in native.TARGETS for name in targets):
        if (lacking := native.missing()) is not None:
            sys.exit(lacking)
        variables = native.prepare(_folder("native"))
    bad = [name for name in targets if not fuzz(name, options.seconds, variables)]
    sys.exit(1 if bad else 0)


def fuzz(name: str, seconds: int, variables: Mapping[str, str]) -> bool:
    """One target. Returns whether every input ended well."""
    folder = _folder(name)
    before = set(folder.iterdir())
    corpus = _folder(name, "corpus")
    command = [*program(name), *FLAGS, f"-max_total_time={seconds}", f"-artifact_prefix={folder}{os.sep}", str(corpus)]
    if name in native.TARGETS:
        command.append(str(native.seeds(name, OUT / "native")))
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1", **variables}
    with tempfile.TemporaryDirectory(prefix="phi-edge-fuzz-", dir=_memory()) as scratch, _log(name).open("wb") as log:
        environment |= {"TMPDIR": scratch}
        try:
            process = subprocess.run(
                command, stdout=log, stderr=log, env=environment, check=False, timeout=START_S + 2 * seconds
            )
            ended = f"exit code {process.returncode}" if process.returncode else None
        except subprocess.TimeoutExpired:
            ended = "no end"
    found = sorted(path for path in set(folder.iterdir()) - before if path.name.startswith(FOUND))
    print(f"{name}: {_count(name)} inputs, {ended or 'all ended well'}", flush=True)
    for path in found:
        again = " ".join([*(f"{key}={value}" for key, value in variables.items()), *program(name), str(path)])
        print(f"  {path.relative_to(ROOT)}\n  again: {again}", flush=True)
    if ended is not None:
        print(f"  the end of {_log(name).relative_to(ROOT)}:", *_last_lines(name), sep="\n    ", flush=True)
    return ended is None


def program(name: str) -> Sequence[str]:
    """The command before libFuzzer's flags, and before a file that is to be tried again."""
    if name in native.TARGETS:
        return [str(OUT / "native" / "build" / name)]
    return [sys.executable, str(ROOT / "ci" / "fuzz" / "python.py"), name]


def _folder(*names: str) -> Path:
    folder = OUT.joinpath(*names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _memory() -> str | None:
    """A file system in memory for the files of inputs, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _log(name: str) -> Path:
    return OUT / f"{name}.log"


def _last_lines(name: str) -> Sequence[str]:
    lines = _log(name).read_text(errors="replace").splitlines()
    return [line[:300] for line in lines if not line.startswith(("INFO: Instrumenting", "#", "stat::"))][-25:]


def _count(name: str) -> str:
    counts = [
        line.split()[-1] for line in _log(name).read_text(errors="replace").splitlines() if "executed_units" in line
    ]
    return f"{int(counts[-1]):,}" if counts else "some"


if __name__ == "__main__":
    main()
