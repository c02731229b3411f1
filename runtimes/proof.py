"""`python -m runtimes.proof FOLDER FORMAT`: does the engine run a folder that an export has filled, and not yet sealed?

The manifest comes on stdin, because it is not in the folder before this has succeeded. The export starts this process
long before, so that the library of FORMAT's engine is loaded by then; where stdin ends without a manifest, the export
has failed. One line of JSON on stdout is the answer: {"remarks": [...]} with exit code 0, {"error": "..."} with exit
code 2. It is a process of its own so that the engine's memory is not the exporter's, and its crash neither.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from export.artifact import Artifact, Manifest
from export.errors import ArtifactError
from export.strict import build, parse_json
from runtimes.agent.lines import LineWriter
from runtimes.api import GenerateRequest, Message, Runtime, TokenEvent
from runtimes.engines.cuda import refused_here
from runtimes.engines.engine import ACCELERATED, ANY_ADAPTER, Graphics
from runtimes.errors import EngineError, RequestError, RuntimesError
from runtimes.registry import load_library, open_tokens, text_runtime
from runtimes.text.tokenizer import Tokenizer

QUESTION = "Is the lamp on?"
TOKENS = 4  # the first is a prefill's, the others come one by one
REFERENCE_TOKENS = 16  # of the answer that the artifact keeps, and that `phi-edge bench` asks for again
Reference = Mapping[str, Sequence[int]]


def prove(artifact: Artifact) -> tuple[list[str], Reference | None]:
    """Generate some tokens from a plain text, and from a question in the chat template. -> remarks, and the first
    answer; None where the context is too short for one, or another processor ran it than the one it is for.

    Raises RuntimesError.
    """
    tokenizer = Tokenizer(artifact.folder, artifact.manifest.files)
    provider = artifact.manifest.engine.get("provider")
    if provider == "cuda" and (reason := refused_here(artifact.manifest)) is not None:
        return [f"not run before it was sealed: {reason}"], None
    # An export for WebGPU or CUDA needs no adapter on the exporting machine.
    needs_none = artifact.manifest.target in ("webgpu", "cuda")
    graphics = Graphics(allow_cpu=True) if needs_none else ANY_ADAPTER
    source = open_tokens(artifact, graphics=graphics)
    runtime = text_runtime(artifact, source)
    remarks: list[str] = []
    with contextlib.closing(runtime):
        most = artifact.manifest.context_tokens - TOKENS
        prompt = (tokenizer.encode_prompt(QUESTION) or [0])[: max(1, most)]
        whole = len(prompt) + REFERENCE_TOKENS <= artifact.manifest.context_tokens
        answer = _generate(runtime, prompt, REFERENCE_TOKENS if whole else TOKENS)
        if tokenizer.has_template:
            try:
                ids = tokenizer.encode_chat([Message("user", QUESTION)])
            except RequestError as error:  # it can be used without a template
                remarks.append(f"chat is not possible: {error}")
            else:
                if len(ids) <= most:
                    _generate(runtime, ids, TOKENS)
    elsewhere = source.accelerator is None and provider in ACCELERATED
    if elsewhere:
        remarks.append(f"run here on ONNX Runtime's CPU, not on {ACCELERATED[str(provider)]}")
    return remarks, {"prompt": prompt, "answer": answer} if whole and not elsewhere else None


def _generate(runtime: Runtime, ids: Sequence[int], count: int) -> list[int]:
    """The answer's ids."""
    answer = []
    request = GenerateRequest(token_ids=ids, max_new_tokens=count, ignore_stop_ids=True)
    for event in runtime.generate(request):
        if isinstance(event, TokenEvent):
            answer.append(event.id)
        elif event.finish == "error":
            raise EngineError(event.error or "the engine failed without a reason")
    return answer


def main() -> int:
    """See the module; -> the exit code."""
    out = LineWriter.over_stdout()
    load_library(sys.argv[2])
    content = sys.stdin.buffer.read()
    if not content:
        return 0
    manifest = build(Manifest, parse_json(content), "the manifest on stdin", ArtifactError)
    answer: Mapping[str, object]
    try:
        remarks, reference = prove(Artifact(Path(sys.argv[1]), manifest))
        answer = {"remarks": remarks, "reference": reference}
    except RuntimesError as error:
        answer = {"error": " ".join(str(error).split())}
    out.write(answer)
    return 2 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
