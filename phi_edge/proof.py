"""The proof of an export: the artifact is opened in its engine and generates, in a process of its own, before it is
sealed. `export_model` here is the public one; that of export.pipeline seals without a proof."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifact import Artifact, Format, Manifest
from export.errors import CheckpointError, OptionError, ProofError, SpaceError
from export.strict import parse_json
from export.system import memory_room, numbers, seldom_collected
from export.verify.proof import Proof
from runtimes.api import Message
from runtimes.errors import EngineError, RequestError, UnsupportedError, ended

if TYPE_CHECKING:
    from export.pipeline import Progress
    from export.request import ExportRequest

QUESTION = "Is the lamp on?"
LIMIT_S = 900.0  # an engine that hangs; a full-size artifact takes ten seconds
PROVED_TOKENS = 256  # more than the proof generates
LIBRARIES: dict[Format, str] = {"onnx": "onnxruntime", "executorch": "executorch", "gguf": "xllamacpp"}
# Not every machine that exports has one, and a GGUF file is often for another program.
OPTIONAL = "gguf"
LAST_BYTES = 2000


def export_model(request: ExportRequest, progress: Progress | None = None) -> Artifact:
    """Run one export, prove the artifact and seal it. Raises ExportError, before anything is written where that is
    possible."""
    with seldom_collected(), contextlib.closing(ChildProver()) as prover:
        from export import pipeline  # here, because it brings torch with its many objects

        return pipeline.export_model(request, progress, prover)


class ChildProver:
    """See Prover. Its memory is that of another process, which ends with the proof, or with this process."""

    def __init__(self) -> None:
        self._prompts: Prompts | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def prepare(self, folder: Path, format: Format) -> None:
        """See Prover."""
        if format != OPTIONAL and importlib.util.find_spec(LIBRARIES[format]) is None:
            raise OptionError(
                f"an export is run before it is sealed, and {LIBRARIES[format]} is not installed: pip install "
                f"'phi-edge[{format}]'"
            )
        self._prompts = read_prompts(folder)
        self._child = start_child(folder, format)  # it loads the engine's library while weights are written

    def run(self, artifact: Artifact) -> Proof:
        """See Prover."""
        if importlib.util.find_spec(LIBRARIES[artifact.manifest.format]) is None:
            there_is = "there is no llama.cpp here; pip install 'phi-edge[gguf]' brings one"
            return Proof([f"not run before it was sealed: {there_is}"])
        if (reason := too_little_memory(artifact.manifest)) is not None:
            return Proof([reason])
        prompts = self._prompts or read_prompts(artifact.folder)
        child = self._child = self._child or start_child(artifact.folder, artifact.manifest.format)
        content = f"{json.dumps(prompts.ids)}\n{artifact.manifest.to_json()}"
        try:
            stdout, stderr = child.communicate(content.encode(), LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise SpaceError(f"the engine was still busy with the first tokens after {LIMIT_S:.0f} s") from None
        answer = read_answer(stdout)
        if "remarks" in answer:
            return Proof([*prompts.remarks, *map(str, answer["remarks"])], answer.get("reference"))
        reason = str(answer.get("error", f"it ended{ended(child.returncode)}{last_line(stderr)}"))
        message = f"the engine does not run this export, so that it was not sealed: {reason}"
        raise SpaceError(message) if child.returncode == -9 else ProofError(message)

    def close(self) -> None:
        """End the process, if it is still there."""
        if self._child is not None:
            with self._child:
                self._child.kill()


@dataclass(frozen=True)
class Prompts:
    """What the artifact is asked: a plain text, and a question in the chat template where a chat is possible."""

    ids: Sequence[Sequence[int]]
    remarks: Sequence[str] = ()


def read_prompts(folder: Path) -> Prompts:
    """By the tokenizer and the chat template in `folder`, as the runtimes read them. Raises CheckpointError."""
    from runtimes.text.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer(folder)
        plain = tokenizer.encode_prompt(QUESTION) or [0]
        try:
            chat = tokenizer.encode_chat([Message("user", QUESTION)]) if tokenizer.has_template else []
        except UnsupportedError as error:  # the template does what our runtimes do not allow; it can be used without
            return Prompts([plain], [f"chat is not possible: {error}"])
    except (EngineError, RequestError) as error:
        raise CheckpointError(f"the checkpoint's tokenizer or chat template cannot be used: {error}") from error
    return Prompts([plain, chat] if chat else [plain])


def start_child(folder: Path, format: Format) -> subprocess.Popen[bytes]:
    """The process that will run the artifact in this folder. It reads the prompts and the manifest from its stdin."""
    command = [sys.executable, "-P", "-m", "runtimes.proof", str(folder.resolve()), format]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def too_little_memory(manifest: Manifest) -> str | None:
    """Why the artifact cannot be run beside this process; None where it can."""
    from runtimes.system.size import size_text

    # ExecuTorch's cache is a part of the program: a whole context's, at once.
    tokens = manifest.context_tokens if manifest.format == "executorch" else PROVED_TOKENS
    needed, room = manifest.memory.needed_bytes(tokens), memory_room()
    free = room.bytes - numbers(Path("/proc/self/status")).get("VmRSS", 0) if room else needed
    if room is None or needed <= free:
        return None
    return (
        f"not run before it was sealed: that needs {size_text(needed)} of memory, and {size_text(free)} are "
        f"{room.source}; try `phi-edge run` where there is more"
    )


def read_answer(stdout: bytes) -> dict[str, Any]:
    """The last line of the child's stdout; empty where there is none."""
    try:
        answer = parse_json(stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}


def last_line(stderr: bytes) -> str:
    """What an engine wrote last, for a message."""
    lines = stderr[-LAST_BYTES:].decode("utf-8", "replace").split("\n")
    text = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"; its last line: {''.join(char if char.isprintable() else '?' for char in text)}" if text else ""
