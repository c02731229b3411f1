"""What this machine's GPU computes with our artifacts, as a table: CUDA, and WebGPU outside a browser.

    python ci/gpu_check.py [--provider cuda --provider webgpu] [--artifact FOLDER ...] [--full-size-only] [--out gpu.md]

For each provider the tiny model is exported and run in our engine and, for CUDA, in stock onnxruntime-genai: logits and
greedy tokens beside the CPU provider's, where the provider put each node, speed and memory. --artifact adds a folder of
full size, which runs on the provider that it was exported for; --reference is the same checkpoint's export for the CPU,
for an artifact that ONNX Runtime's CPU cannot compute (Phi-3-small's). Small variants of the family, with the published
head layouts, windows and long rope, are compared with their float reference.
Without a GPU it says so in one line, with exit code 2; exit code 1 if something is not as on the CPU.
--provider cpu, and --provider webgpu --adapter software, rehearse it anywhere.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)
from ci.four_engines import held_out_prompts  # noqa: E402
from ci.gpu.meter import open_nvml  # noqa: E402
from ci.gpu.plan import EXPORTS, QUICK, Plan  # noqa: E402
from ci.gpu.result import CONFORM_HEAD, HEAD, Conformance, Row  # noqa: E402
from ci.gpu.work import MARK  # noqa: E402
from ci.placements import PlacementError, count, read_placements  # noqa: E402
from export.artifact import Artifact, open_artifact  # noqa: E402
from export.pipeline import export_model  # noqa: E402
from export.request import ExportRequest  # noqa: E402
from runtimes.engines.cuda import choose_gpu  # noqa: E402
from runtimes.engines.genai_engine import rare_id  # noqa: E402
from runtimes.engines.webgpu import find_device  # noqa: E402
from runtimes.errors import EngineError  # noqa: E402
from runtimes.system.cuda import list_gpus  # noqa: E402
from runtimes.text.tokenizer import Tokenizer  # noqa: E402

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
LIMIT_S = 900.0
LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime-ep-webgpu")
ACCELERATORS = {"cuda": "CUDAExecutionProvider", "webgpu": "WebGpuExecutionProvider", "cpu": "CPUExecutionProvider"}


@click.command()
@click.option("--provider", "providers", multiple=True, type=click.Choice(list(EXPORTS)), default=("cuda", "webgpu"))
@click.option("--adapter", help="WebGPU's: as for phi-edge run; without it the first discrete one.")
@click.option("--artifact", "artifacts", multiple=True, type=FOLDER, help="An artifact of full size for a GPU.")
@click.option("--reference", "references", multiple=True, type=FOLDER, help="Its export for --target cpu.")
@click.option("--full-size-only", is_flag=True, help="Only those artifacts.")
@click.option("--activations", type=click.Choice(["float16", "float32"]), help="Of the tiny model, only these.")
@click.option("--quick", is_flag=True, help="A few tokens of everything, to try the script itself.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the page there, too.")
def main(
    providers: tuple[str, ...],
    adapter: str | None,
    artifacts: tuple[Path, ...],
    references: tuple[Path, ...],
    full_size_only: bool,
    activations: str | None,
    quick: bool,
    out: Path | None,
) -> None:
    """Run the checks on this machine's GPU and print the table."""
    opened, others = ([open_artifact(folder) for folder in folders] for folders in (artifacts, references))
    for each in opened:
        if each.manifest.engine.get("provider") not in providers:
            raise click.UsageError(
                f"{each.folder}: is for {each.manifest.target}; give --provider, too, or leave it out"
            )
    for other in others:
        if not any(stand_in(each, [other]) for each in opened):
            raise click.UsageError(f"{other.folder}: no --artifact is of the same checkpoint and scheme")
    if full_size_only and not opened:
        raise click.UsageError("--full-size-only: give --artifact")
    plan = Plan(adapter=adapter, **(QUICK if quick else {}))
    if full_size_only:
        plan = dataclasses.replace(plan, tiny=False, variants={})
    try:
        devices = [f"- {provider}: {name_device(provider, adapter)}" for provider in providers]
    except EngineError as error:
        click.echo(f"ci/gpu_check.py: {error}", err=True)
        raise SystemExit(2) from error
    # Not timed, so first: the machine is warm when the rest is.
    variants = [found for provider in providers for found in conformances(provider, plan)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for provider in providers:
            for target, type in EXPORTS[provider] if plan.tiny else ():
                if activations in (None, type):
                    artifact = export_tiny(Path(folder) / f"{target}-{type}", target, type)
                    rows += check(
                        artifact, f"tiny, {type}", provider, plan, held_out_prompts(plan.prompts), plan.tokens
                    )
            for each in opened:
                if each.manifest.engine["provider"] == provider:
                    texts = held_out_prompts(plan.full_prompts)
                    rows += check(
                        each, each.folder.name, provider, plan, texts, plan.full_tokens, stand_in(each, others)
                    )
    text = "\n".join([*facts(devices), "", HEAD, *(row.markdown() for row in rows), ""])
    text += "\n".join(
        [f"{row.model}, {row.engine}, nodes beside the GPU: {', '.join(row.outside)}" for row in rows if row.outside]
    )
    if variants:
        text += "\n\n" + "\n".join([CONFORM_HEAD, *(each.markdown() for each in variants)])
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    wrong = any(row.wrong for row in rows) or any(each.error or each.failures for each in variants)
    raise SystemExit(int(wrong))


def stand_in(artifact: Artifact, references: Sequence[Artifact]) -> Artifact | None:
    """The one with the same weights."""
    wanted = artifact.manifest.source, artifact.manifest.scheme.name
    return next((each for each in references if (each.manifest.source, each.manifest.scheme.name) == wanted), None)


def name_device(provider: str, adapter: str | None) -> str:
    """What the provider would compute on. Raises EngineError where there is nothing."""
    if provider == "cuda":
        gpus = list_gpus()
        return gpus[choose_gpu(gpus)].describe()
    return find_device(adapter).describe() if provider == "webgpu" else platform.processor() or "CPU"


def facts(devices: Sequence[str]) -> Iterator[str]:
    """The machine and its software, a line each."""
    yield from devices
    if (nvml := open_nvml()) is not None:
        yield f"- GPU 0: {nvml.describe()}"
    yield f"- Python {platform.python_version()}, {platform.system()} {platform.release()}"
    installed = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    yield "- " + ", ".join(f"{name} {installed[name]}" for name in LIBRARIES if name in installed)


def export_tiny(folder: Path, target: str, activations: str) -> Artifact:
    """The tiny model in 4 bits. The export's own proof is left out: that is what follows."""
    return export_model(
        ExportRequest(checkpoint="tiny", out=folder, target=target, scheme="int4-b32", activations=activations)
    )


def check(
    artifact: Artifact,
    name: str,
    provider: str,
    plan: Plan,
    texts: Sequence[str],
    tokens: int,
    reference: Artifact | None = None,
) -> Iterator[Row]:
    """Our engine, then the stock one where it has the provider. After each of `texts`, so many tokens. The CPU computes
    the same artifact, or the reference."""
    tokenizer, manifest = Tokenizer(artifact.folder, artifact.manifest.files), artifact.manifest
    asked: dict[str, Any] = {
        "folder": str(artifact.folder), "reference": str((reference or artifact).folder),
        "provider": provider, "adapter": plan.adapter,
        "prompts": [tokenizer.encode_prompt(text) for text in texts], "count": tokens,
        "lengths": plan.lengths, "steps": plan.steps,
        "stop": rare_id(artifact), "context_tokens": manifest.context_tokens,
    }  # fmt: skip
    try:
        found = work("ours", asked)
        placed = places(artifact, provider, asked)
    except CheckError as error:
        yield Row(model=name, engine=f"ours, {provider}", error=str(error))
        return
    ours, expected = found["tokens"], found["expected"]
    yield row(name, f"ours, {provider}", found, expected, placed)
    if provider == "webgpu":
        return
    try:
        found = work("stock", asked)
    except CheckError as error:
        yield Row(model=name, engine="onnxruntime-genai", error=str(error))
        return
    apart = sum(stock not in pair for stock, *pair in zip(found["tokens"], ours, expected, strict=True))
    yield dataclasses.replace(row(name, "onnxruntime-genai", found, expected), apart=apart)


def row(
    model: str, engine: str, found: Mapping[str, Any], expected: Sequence[Any], placed: Placed | None = None
) -> Row:
    """A worker's answer as a row."""
    return Row(
        model=model,
        engine=engine,
        difference=found.get("difference"),
        spread=found.get("spread"),
        equal=sum(ours == theirs for ours, theirs in zip(found["tokens"], expected, strict=True)),
        prompts=len(expected),
        gaps=found.get("gaps", ()),
        nodes=placed.nodes if placed else {},
        outside=placed.outside if placed else (),
        prefill={int(tokens): speed for tokens, speed in found["prefill"].items()},
        decode={int(tokens): speed for tokens, speed in found["decode"].items()},
        memory_bytes=found["memory_bytes"],
    )


@dataclass(frozen=True)
class Placed:
    """Where ONNX Runtime put the nodes: how many on each provider, and those beside the GPU."""

    nodes: Mapping[str, int]
    outside: Sequence[str]


def places(artifact: Artifact, provider: str, asked: Mapping[str, Any]) -> Placed:
    """Which nodes the provider does not run, by ONNX Runtime's own log. Raises CheckError where these are others than
    the manifest says."""
    try:
        placed = read_placements(work("placements", asked)["stderr"])
    except PlacementError as error:
        raise CheckError(str(error)) from error
    outside = [each for each in placed if each.provider != ACCELERATORS[provider]]
    listed = artifact.manifest.coverage.get("CPUExecutionProvider", {}) if provider != "cpu" else {}
    operators = count(outside).get("CPUExecutionProvider", {})
    more = {name: number for name, number in operators.items() if number > listed.get(name, 0)}
    if more:
        raise CheckError(
            f"on the CPU beside what the manifest says: {more} ({', '.join(each.node for each in outside)})"
        )
    nodes = {name: sum(operators.values()) for name, operators in count(placed).items()}
    return Placed(nodes, [f"{each.node} ({each.operator})" for each in outside])


def conformances(provider: str, plan: Plan) -> Iterator[Conformance]:
    """The small variants that the provider has operators for."""
    for variant, context_tokens in plan.variants.get(provider, {}).items():
        name = f"{variant}, {provider}"
        asked = {
            "variant": variant, "context_tokens": context_tokens, "target": provider, "provider": provider,
            "adapter": plan.adapter,
        }  # fmt: skip
        try:
            found = work("conform", asked)
        except CheckError as error:
            yield Conformance(variant=name, context_tokens=context_tokens, error=str(error))
            continue
        found.pop("stderr")
        yield Conformance(variant=name, context_tokens=context_tokens, **found)


class CheckError(Exception):
    """A check failed; the message is its line in the table."""


def work(kind: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of ci.gpu.work, and what it wrote to stderr. Raises CheckError."""
    command = [sys.executable, "-m", "ci.gpu.work", kind, json.dumps(asked)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise CheckError(f"still running after {LIMIT_S:.0f} s") from error
    answers = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not answers:
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:]
        click.echo(done.stderr[-3000:], err=True)
        raise CheckError(f"failed with {done.returncode}: {' '.join(last)[:300]}".replace("|", "/"))
    answer: dict[str, Any] = json.loads(answers[-1])
    return answer | ({"stderr": done.stderr} if kind in ("placements", "conform") else {})


if __name__ == "__main__":
    main()
