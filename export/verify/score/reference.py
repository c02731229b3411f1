"""The float model's logits for every block: what an artifact's predictions are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from export.adapters.merge import check_merged, merge_adapters
from export.artifact import Artifact
from export.checkpoint.open import open_checkpoint
from export.errors import ArtifactError, OptionError
from export.request import AdapterChoice
from export.strict import parse_json, read_json
from export.verify.score.blocks import Block
from export.verify.score.losses import Rows
from export.verify.score.streamed import LayerDone, StreamedReference


@dataclass(frozen=True)
class FloatReference:
    """A checkpoint's model in float32. `rows` gives the logits of one block after the other."""

    name: str
    rows: Callable[[Sequence[Block], LayerDone], Iterator[Rows]]


def float_reference(artifact: Artifact, where: str, adapters: Sequence[AdapterChoice]) -> FloatReference:
    """The reference for `--against CHECKPOINT`. Raises CheckpointError, AdapterError, ArtifactError where the artifact
    was made with other adapters, and OptionError where its tokens are others."""
    checkpoint = merge_adapters(open_checkpoint(where), adapters)
    check_merged(artifact, [adapter.describe() for adapter in checkpoint.adapters])
    check_tokens(artifact, checkpoint.name, checkpoint.tokenizer, checkpoint.config.vocab_size)
    model = StreamedReference(checkpoint)
    return FloatReference(f"{checkpoint.name} in float32 ({model.name})", model.rows)


def check_tokens(artifact: Artifact, name: str, tokenizer: str, vocab_size: int) -> None:
    """Refuse a reference to which the same ids are other tokens. Raises OptionError."""
    ours = artifact.manifest.model.vocab_size
    if ours != vocab_size:
        raise OptionError(
            f"{artifact.folder.name} has a vocabulary of {ours} tokens, {name} one of {vocab_size}; compare artifacts "
            "and checkpoints of one model"
        )
    mine = read_json(artifact.path("tokenizer.json"), ArtifactError, "export it again")
    try:
        theirs = parse_json(tokenizer.encode())
    except ValueError as error:
        raise OptionError(f"{name}: its tokenizer.json is not JSON ({error})") from error
    if any(mine.get(key) != theirs.get(key) for key in ("model", "added_tokens")):
        raise OptionError(
            f"{artifact.folder.name} and {name} have different tokenizers (tokenizer.json), so the same ids are other "
            "words; compare artifacts and checkpoints of one model"
        )
