"""The work behind `phi-edge score`: an artifact's engine on the text, the reference beside it, and the questions."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from devices.drivers.cloud.device import CloudDevice
from devices.drivers.cloud.driver import CloudDriver
from devices.measure import score as files
from devices.measure.cloud import describe_service
from devices.measure.measurement import DeviceFacts, describe_artifact
from export.artifact import MANIFEST, Artifact, open_artifact, sha256_file
from export.errors import OptionError
from export.request import AdapterChoice
from export.texts import QUESTIONS
from export.verify.score.blocks import Block
from export.verify.score.figures import Figure, block_mean, wilson
from export.verify.score.losses import BlockLosses, Rows
from export.verify.score.questions import Question, read_questions
from phi_edge.progress import steps
from phi_edge.score.engines import Scored, open_here, open_there
from phi_edge.score.inputs import Inputs
from runtimes.api import DoneEvent, GenerateRequest, Message, Runtime
from runtimes.errors import EngineError
from runtimes.intact import check_intact
from runtimes.registry import open_tokens

ANSWER_TOKENS = 32
Step = Callable[[int, str], None]  # how many blocks and questions are done, and what is being done


@dataclass(frozen=True)
class Reference:
    """What the artifact is compared with; `rows` gives its logits of one block after the other."""

    name: str
    digest: str | None
    rows: Callable[[Sequence[Block]], Iterator[Rows]]


def make_score(
    artifact: Artifact,
    inputs: Inputs,
    against: str | None,
    *,
    adapters: Sequence[AdapterChoice] = (),
    device: str | None,
    lab: Path | None,
    wait_s: float,
    threads: int | None,
) -> files.Score:
    """Read and ask everything. Raises ExportError, RuntimesError and DeviceError."""
    total = len(inputs.blocks) + len(inputs.questions)
    with contextlib.ExitStack() as stack:
        step = stack.enter_context(steps(f"score {artifact.folder.resolve().name}", total))
        step(0, "loading")
        # Before the reference: the engine decides how many threads torch has where it is the first to import it.
        if device is None:
            scored: Scored = stack.enter_context(open_here(artifact, threads))
        else:
            scored = stack.enter_context(open_there(artifact, device, lab, wait_s, threads, lambda what: step(0, what)))
        reference = None
        if against is not None and inputs.blocks:
            reference = stack.enter_context(_open_reference(artifact, against, adapters, threads, step))
        found = _read(scored, inputs.blocks, reference, step)
        right = ask(scored.runtime, inputs.questions, len(inputs.blocks), step)
    return files.Score(
        schema=files.SCHEMA,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        artifact=describe_artifact(artifact),
        device=scored.device,
        threads=threads,
        versions=dict(scored.versions),
        text=_text_facts(inputs) if inputs.blocks else None,
        reference=files.ReferenceFacts(name=reference.name, digest=reference.digest, kl_over=scored.kl_over)
        if reference
        else None,
        questions=question_facts(inputs.questions_file, inputs.questions, right) if inputs.questions else None,
        exact_match=file_figure(wilson(sum(right), len(right))) if right else None,
        **_figures(found),
    )


def score_service(name: str, device: CloudDevice, questions: Path | None) -> files.Score:
    """The score of a model that a service runs: the questions alone, because it gives no probabilities of a text.

    Raises ExportError for the questions, RuntimesError and DeviceError.
    """
    file = questions or QUESTIONS
    asked = read_questions(file)
    with (
        contextlib.closing(CloudDriver(name, device).open_runtime()) as runtime,
        steps(f"score {device.model}", len(asked)) as step,
    ):
        right = ask(runtime, asked, 0, step)
        version = runtime.client_version
    return files.Score(
        schema=files.SCHEMA,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        artifact=describe_service(device),
        device=DeviceFacts(name=name, transport=device.transport),
        threads=None,
        versions={device.transport: version},
        text=None,
        reference=None,
        questions=question_facts(file, asked, right),
        perplexity=None,
        reference_perplexity=None,
        perplexity_ratio=None,
        kl=None,
        top1_agreement=None,
        exact_match=file_figure(wilson(sum(right), len(right))),
    )


@contextlib.contextmanager
def _open_reference(
    artifact: Artifact, against: str, adapters: Sequence[AdapterChoice], threads: int | None, step: Step
) -> Iterator[Reference]:
    from export.verify.score.reference import check_tokens, float_reference

    if not (Path(against) / MANIFEST).is_file():
        model = float_reference(artifact, against, adapters)

        def layer_done(done: int, total: int) -> None:
            step(0, f"reading the reference: layer {done} of {total}")

        yield Reference(model.name, None, lambda blocks: model.rows(blocks, layer_done))
        return
    if adapters:
        raise OptionError(f"--adapter is for a checkpoint, and {against} is an artifact: leave --adapter out")
    other = open_artifact(Path(against))
    tokenizer = other.path("tokenizer.json").read_text(encoding="utf-8")
    check_tokens(artifact, other.folder.name, tokenizer, other.manifest.model.vocab_size)
    check_intact(other)
    with contextlib.closing(open_tokens(other, threads=threads)) as loop:

        def rows(blocks: Sequence[Block]) -> Iterator[Rows]:
            for block in blocks:
                yield np.stack([np.array(row) for row in loop.logits_along(block.ids[:-1], block.first)])

        yield Reference(f"artifact {other.folder.resolve().name}", other.manifest.digest(), rows)


def _read(scored: Scored, blocks: Sequence[Block], reference: Reference | None, step: Step) -> list[BlockLosses]:
    rows = itertools.repeat(None) if reference is None else reference.rows(blocks)
    found = []
    for number, block in enumerate(blocks):
        step(number, f"reading {block.kind}" if reference is None else f"reading {block.kind}, with the reference")
        found.append(scored.losses(block, next(rows)))
    return found


def ask(runtime: Runtime, questions: Sequence[Question], done: int, step: Step) -> list[bool]:
    """Which of the questions are answered right; `done` is how many blocks were read before."""
    right = []
    for number, question in enumerate(questions):
        step(done + number, f"asking {question.kind}")
        right.append(_is_answered(runtime, question))
    step(done + len(questions), "done")
    return right


def _is_answered(runtime: Runtime, question: Question) -> bool:
    """Ask greedily, and listen no longer than until the answer is there."""
    request = GenerateRequest(messages=[Message("user", question.question)], max_new_tokens=ANSWER_TOKENS)
    said = ""
    with contextlib.closing(runtime.generate(request)) as events:
        for event in events:
            said += event.text
            if isinstance(event, DoneEvent) and event.finish == "error":
                raise EngineError(event.error or "the runtime failed in the middle of an answer")
            if question.is_right(said, more=True):
                return True
    return question.is_right(said)


def _figures(found: Sequence[BlockLosses]) -> Mapping[str, files.Figure | None]:
    names = ("perplexity", "reference_perplexity", "perplexity_ratio", "kl", "top1_agreement")
    figures: dict[str, files.Figure | None] = dict.fromkeys(names)
    if not found:
        return figures
    kinds = [each.kind for each in found]
    nll = [each.nll for each in found]
    figures["perplexity"] = file_figure(block_mean(nll, kinds, np.exp))
    theirs = [each.reference_nll for each in found if each.reference_nll is not None]
    if theirs:
        differences = [ours - other for ours, other in zip(nll, theirs, strict=True)]
        figures["reference_perplexity"] = file_figure(block_mean(theirs, kinds, np.exp))
        figures["perplexity_ratio"] = file_figure(block_mean(differences, kinds, np.exp))
        figures["kl"] = file_figure(block_mean([each.kl for each in found if each.kl is not None], kinds))
        same = [each.same_top1 for each in found if each.same_top1 is not None]
        figures["top1_agreement"] = file_figure(block_mean(same, kinds))
    return figures


def file_figure(figure: Figure) -> files.Figure:
    """As a score's file has it."""
    return files.Figure(**asdict(figure))


def _text_facts(inputs: Inputs) -> files.TextFacts:
    return files.TextFacts(
        name=inputs.text.name,
        sha256=sha256_file(inputs.text),
        blocks=len(inputs.blocks),
        scored_tokens=sum(block.scored for block in inputs.blocks),
        left_out=inputs.left_out,
    )


def question_facts(file: Path, questions: Sequence[Question], right: Sequence[bool]) -> files.QuestionFacts:
    """What was asked, by kind."""
    asked, answered = Counter[str](), Counter[str]()
    for question, is_right in zip(questions, right, strict=True):
        asked[question.kind] += 1
        answered[question.kind] += is_right
    return files.QuestionFacts(
        name=file.name,
        sha256=sha256_file(file),
        kinds={kind: files.Count(asked=asked[kind], right=answered[kind]) for kind in asked},
    )
