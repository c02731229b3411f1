"""What int4 costs on a real language model: our exports beside other tools', each through its own engine.

    python ci/bench/quality.py [--rows cpu,genai-int4] [--tokens 8192] [--out docs]

Every row is measured in a process of its own, on the same text and by the same arithmetic. Its result is kept in the
cache, so that a run that was stopped goes on where it was, and a row is measured again only where its code, its inputs
or the engine's version has changed. The float model's logits take 0.2 MB of disk for each token of SmolLM2.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
# Run as a script, this folder comes first on the path, and ci/bench/export.py would be taken for the package `export`.
sys.path[0] = str(ROOT)
from ci.quality.measure import read_inputs  # noqa: E402
from ci.quality.packages import beside, with_packages  # noqa: E402
from ci.quality.page import plot, put, table  # noqa: E402
from ci.quality.result import Result, read_result  # noqa: E402
from ci.quality.rows import FLOAT, Row, named, rows  # noqa: E402
from ci.real_model import build_real_model  # noqa: E402
from runtimes.system.cache_folder import cache_folder  # noqa: E402

ROW_S = 3 * 3600.0
PAGE = "quality.md"
# Sources of all measurements.
EVERY_ROW = ("ci/quality/measure.py", *(f"export/verify/score/{name}.py" for name in ("blocks", "figures", "losses")))


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all rows of one table have in common."""

    checkpoint: Path
    digest: str  # of the checkpoint's files and of what every row reads and answers
    tokens: int
    threads: int
    cache: Path

    @property
    def reference(self) -> Path:
        """The float model's logits, with which all rows are compared."""
        return self.cache / f"float-{self.made_by(named(FLOAT))}-{self.tokens}.npy"

    def made_by(self, row: Row) -> str:
        """A digest of all that the row's result comes from."""
        compared = [] if row.name == FLOAT else [self.made_by(named(FLOAT))]
        parts = [self.digest, str(self.tokens), row.command, row.engine, sources_digest(row), *compared]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@click.command()
@click.option("--rows", "chosen", metavar="NAME,...",
              help="Only these rows. Also any export of ours as TARGET/SCHEME/SIZE.")  # fmt: skip
@click.option("--list", "listed", is_flag=True, help="Print the rows' names and measure nothing.")
@click.option("--tokens", default=8192, show_default=True, help="How many tokens of the held-out text to predict.")
@click.option("--threads", default=os.cpu_count() or 1, show_default="all cores", help="For every engine.")
@click.option("--dither", is_flag=True, help="Weights off the 4-bit grid that SmolLM2's file has them on.")
@click.option("--checkpoint", type=click.Path(exists=True, path_type=Path), help="Another Phi-3 than SmolLM2.")
@click.option("--cache", type=click.Path(path_type=Path), help="Default: quality/ in the cache of phi-edge.")
@click.option("--out", type=click.Path(exists=True, path_type=Path),
              help="A folder for quality.json and quality.svg, whose quality.md gets the table.")  # fmt: skip
def main(
    chosen: str | None,
    listed: bool,
    tokens: int,
    threads: int,
    dither: bool,
    checkpoint: Path | None,
    cache: Path | None,
    out: Path | None,
) -> None:
    """Measure the rows that have not been measured yet, and print the table of all."""
    wanted = [named(name) for name in chosen.split(",")] if chosen else list(rows().values())
    if listed:
        click.echo("\n".join(f"{row.name:<32}  {row.label}" for row in wanted))
        return
    name = "quality-dither" if dither else "quality"
    if out is not None:
        check_page(out / PAGE, name)  # before hours of work
    folder = cache or cache_folder() / "quality"
    model = checkpoint or build_real_model("phi3", dither=dither)
    run = Run(checkpoint=model, digest=inputs_digest(model, tokens), tokens=tokens, threads=threads, cache=folder)
    wanted = [named(FLOAT), *(row for row in wanted if row.name != FLOAT)]
    results = [result for row in wanted if (result := result_of(row, run)) is not None]
    if results:
        given = ["--dither"] * dither + ["--tokens", str(tokens)] + (["--rows", chosen] if chosen else [])
        write(results, out, name, shlex.join(["python", "ci/bench/quality.py", *given]))
    if len(results) < len(wanted):
        raise click.ClickException(f"{len(wanted) - len(results)} of {len(wanted)} rows failed")


def result_of(row: Row, run: Run) -> Result | None:
    """The row's result, out of the cache or measured now; None where that failed, which is printed."""
    made_by = run.made_by(row)
    place = run.cache / f"{run.checkpoint.resolve().name}-{run.tokens}"
    file = place / f"{row.name.replace('/', '+')}.json"
    known = read_result(file)
    if known and known.made_by == made_by and (row.name != FLOAT or run.reference.is_file()):
        click.echo(f"{row.name:<32}  measured before", err=True)
        return known
    place.mkdir(parents=True, exist_ok=True)
    log, work = file.with_suffix(".log"), file.with_suffix("")
    command = [sys.executable, "-m", "ci.quality.measure", row.name, str(file), "--made-by", made_by]
    command += ["--checkpoint", str(run.checkpoint), "--cache", str(run.cache), "--work", str(work)]
    command += ["--reference", str(run.reference), "--tokens", str(run.tokens), "--threads", str(run.threads)]
    try:
        packages = with_packages(*(beside(run.cache, each) for each in row.needs))
        with log.open("w") as written:
            subprocess.run(
                command, cwd=ROOT, env=packages, stdout=written, stderr=subprocess.STDOUT, timeout=ROW_S, check=True
            )
    except subprocess.SubprocessError as error:
        click.echo(f"{row.name:<32}  failed: {reason(error)}; {log}", err=True)
        return None
    if (result := read_result(file)) is None:
        raise click.ClickException(f"{file}: was not written; {log}")
    shutil.rmtree(work, ignore_errors=True)
    click.echo(f"{row.name:<32}  {result.make_s:.0f} s to make, {result.read_s:.0f} s to read", err=True)
    return result


def reason(error: subprocess.SubprocessError) -> str:
    """A failed command in a few words."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not ended after {error.timeout:.0f} s"
    return f"status {error.returncode}" if isinstance(error, subprocess.CalledProcessError) else str(error)


def write(results: Sequence[Result], out: Path | None, name: str, command: str) -> None:
    """The table on the screen; with `out` also as JSON, as a plot, and in the page."""
    text = table(results, command)
    click.echo(text)
    if out is None:
        return
    (out / f"{name}.json").write_text(json.dumps([asdict(each) for each in results], indent=2) + "\n")
    plot(results, out / f"{name}.svg")
    page = out / PAGE
    page.write_text(put(page.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def check_page(page: Path, name: str) -> None:
    """Refuse a page that has no place for the table."""
    try:
        put(page.read_text(encoding="utf-8"), name, "")
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{page}: {error}") from error


def inputs_digest(checkpoint: Path, tokens: int) -> str:
    """Of what every row is made from, and of the token ids that it reads."""
    inputs = read_inputs(checkpoint, tokens)
    digest = hashlib.sha256(json.dumps([[block.ids for block in inputs.blocks], inputs.prompts]).encode())
    for file in sorted(checkpoint.glob("*.json")) + sorted(checkpoint.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]


def sources_digest(row: Row) -> str:
    """Of the code that a measurement of this row depends on."""
    digest = hashlib.sha256()
    for source in (*EVERY_ROW, *row.sources):
        path = ROOT / source
        for file in [path] if path.is_file() else sorted({*path.rglob("*.py"), *path.rglob("*.jsonl")}):
            digest.update(file.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
