"""`python -m runtimes.proof FOLDER FORMAT`: does the engine run a folder that an export has filled, and not yet sealed?

On stdin come a line of JSON, the prompts' ids, and then the manifest, because it is not in the folder before this has
succeeded. The export starts this process long before, so that the library of FORMAT's engine is loaded by then; where
stdin is empty, the export has failed. One line of JSON on stdout is the answer: {"remarks": [...]} with exit code 0,
{"error": "..."} with exit code 2. It is a process of its own so that the engine's memory is not the exporter's, and its
crash neither.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from export.artifact import Artifact, Manifest
from export.errors import ArtifactError
from export.strict import build, parse_json
from runtimes.agent.lines import LineWriter
from runtimes.engines.cuda import refused_here
from runtimes.engines.engine import ACCELERATED, ANY_ADAPTER, Graphics
from runtimes.errors import EngineError, RuntimesError
from runtimes.loop.tokens import NewToken, TokenRequest, TokenSource
from runtimes.registry import load_library, open_tokens
from runtimes.text.suggested import suggested_sampling

TOKENS = 2  # the first is a prefill's, the other comes by itself
REFERENCE_TOKENS = 16  # of the answer that the artifact keeps, and that `phi-edge bench` asks for again
Reference = Mapping[str, Sequence[int]]


def prove(artifact: Artifact, prompts: Sequence[Sequence[int]]) -> tuple[list[str], Reference | None]:
    """Generate some tokens from each prompt; one that the context does not take is left out, the first is shortened.
    -> remarks, and the first answer; None where the context is too short for one, or another processor ran it than the
    one it is for.

    Raises RuntimesError.
    """
    suggested_sampling(artifact)  # what this cannot read, no runtime can
    provider = artifact.manifest.engine.get("provider")
    if provider == "cuda" and (reason := refused_here(artifact.manifest)) is not None:
        return [f"not run before it was sealed: {reason}"], None
    # An export for WebGPU or CUDA needs no adapter on the exporting machine.
    needs_none = artifact.manifest.target in ("webgpu", "cuda")
    graphics = Graphics(allow_cpu=True) if needs_none else ANY_ADAPTER
    source = open_tokens(artifact, graphics=graphics)
    with contextlib.closing(source):
        most = artifact.manifest.context_tokens - TOKENS
        prompt = prompts[0][: max(1, most)]
        whole = len(prompt) + REFERENCE_TOKENS <= artifact.manifest.context_tokens
        answer = _generate(source, prompt, REFERENCE_TOKENS if whole else TOKENS)
        for ids in prompts[1:]:
            if len(ids) <= most:
                _generate(source, ids, TOKENS)
    elsewhere = source.accelerator is None and provider in ACCELERATED
    remarks = [f"run here on ONNX Runtime's CPU, not on {ACCELERATED[str(provider)]}"] if elsewhere else []
    return remarks, {"prompt": prompt, "answer": answer} if whole and not elsewhere else None


def _generate(source: TokenSource, ids: Sequence[int], count: int) -> list[int]:
    """The answer's ids, whatever they say: stop ids, too."""
    answer = []
    for record in source.stream(TokenRequest(ids=ids, max_new_tokens=count)):
        if isinstance(record, NewToken):
            answer.append(record.id)
        elif record.finish == "error":
            raise EngineError(record.error or "the engine failed without a reason")
    return answer


def main() -> int:
    """See the module; -> the exit code."""
    out = LineWriter.over_stdout()
    load_library(sys.argv[2])
    prompts = sys.stdin.buffer.readline()
    if not prompts:
        return 0
    manifest = build(Manifest, parse_json(sys.stdin.buffer.read()), "the manifest on stdin", ArtifactError)
    answer: Mapping[str, object]
    try:
        remarks, reference = prove(Artifact(Path(sys.argv[1]), manifest), json.loads(prompts))
        answer = {"remarks": remarks, "reference": reference}
    except RuntimesError as error:
        answer = {"error": " ".join(str(error).split())}
    out.write(answer)
    return 2 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
