"""What `phi-edge score` reads and asks, in the artifact's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.artifact import Artifact
from export.errors import OptionError
from export.texts import HELD_OUT, QUESTIONS
from export.texts.documents import Document, read_documents
from export.verify.score.blocks import BLOCK_TOKENS, Block, TokenisedDocument, cut
from export.verify.score.questions import Question, read_questions
from runtimes.api import Message
from runtimes.errors import RequestError
from runtimes.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is read and asked. `left_out` counts the text's conversations that the chat template refuses;
    `no_questions` says why none are asked."""

    text: Path
    left_out: int
    blocks: Sequence[Block]
    questions_file: Path
    questions: Sequence[Question]
    no_questions: str | None


def read_inputs(artifact: Artifact, text: Path | None, questions: Path | None, tokens: int) -> Inputs:
    """The files, checked and tokenised before anything heavy is opened. Raises ExportError and RequestError."""
    tokenizer = Tokenizer(artifact.folder, artifact.manifest.files)
    text_file, questions_file = text or HELD_OUT, questions or QUESTIONS
    blocks: list[Block] = []
    left_out = 0
    if tokens:
        texts = read_documents(text_file)
        documents = tokenise(texts, tokenizer)
        left_out = len(texts) - len(documents)
        most = min(BLOCK_TOKENS, artifact.manifest.context_tokens)
        blocks = cut(documents, prefix=tokenizer.encode_prompt(""), tokens=tokens, most_tokens=most)
    no_questions = None
    if questions is None and not tokenizer.has_template:
        no_questions = "this artifact has no chat template"
    asked = [] if no_questions else read_questions(questions_file)
    check_lengths(asked, questions_file, tokenizer, artifact.manifest.context_tokens)
    return Inputs(
        text=text_file,
        left_out=left_out,
        blocks=blocks,
        questions_file=questions_file,
        questions=asked,
        no_questions=no_questions,
    )


def check_lengths(questions: Sequence[Question], file: Path, tokenizer: Tokenizer, context_tokens: int) -> None:
    """A question that does not fit is found before the text is read. Raises OptionError."""
    for number, question in enumerate(questions, start=1):
        tokens = len(tokenizer.encode_chat([Message("user", question.question)]))
        if tokens >= context_tokens:
            raise OptionError(
                f"{file}: question {number} has {tokens} tokens as a prompt, and the artifact a context of "
                f"{context_tokens}; shorten it"
            )


def tokenise(documents: Sequence[Document], tokenizer: Tokenizer) -> list[TokenisedDocument]:
    """A conversation goes through the chat template, and is left out where that has no place for one of its messages,
    as many have none for a system's. Where the artifact has no template, it is read as plain paragraphs.

    Raises RequestError where nothing is left.
    """
    found, refusal = [], None
    for document in documents:
        turns = document.turns or ()
        if not (turns and tokenizer.has_template):
            text = document.text or "\n\n".join(turn.content for turn in turns)
            found.append(TokenisedDocument(document.kind, tokenizer.encode_prompt(text)))
            continue
        messages = [Message(turn.role, turn.content) for turn in turns]
        try:
            found.append(TokenisedDocument(document.kind, tokenizer.encode_chat(messages, ready=False)))
        except RequestError as error:
            refusal = error
    if refusal is not None and not found:
        raise refusal
    return found
