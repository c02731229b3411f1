"""Adapters onto a base: every tensor of theirs must have its place, and fit it, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from export.adapters.changes import Change, LowRank, Replaced, TrainedRows
from export.adapters.config import Ranks
from export.adapters.fit import EMBEDDING_MODULE, HEAD_MODULE, Fit, places
from export.adapters.folder import AdapterFolder, open_adapter
from export.adapters.merged import MergedTensor
from export.artifact import Adapter, Artifact
from export.checkpoint.open import Checkpoint
from export.checkpoint.shards import StoredTensor
from export.errors import AdapterError, ArtifactError
from export.request import AdapterChoice
from export.scheme import EMBEDDING, HEAD


def merge_adapters(checkpoint: Checkpoint, choices: Sequence[AdapterChoice]) -> Checkpoint:
    """The checkpoint with the sum of what the adapters add, each times its weight: PEFT's add_weighted_adapter "cat".

    Raises AdapterError where one is no LoRA, or does not fit.
    """
    if not choices:
        return checkpoint
    if checkpoint.quantised:
        raise AdapterError(
            f"{checkpoint.folder}: is quantised already, and its codes cannot take an adapter; give the float "
            "checkpoint that it was made from"
        )
    adapters = [open_adapter(choice.folder, choice.weight) for choice in choices]
    for adapter in adapters:
        if sum(other.folder.resolve() == adapter.folder.resolve() for other in adapters) > 1:
            raise AdapterError(f"--adapter {adapter.folder}: is given twice; give it once, with the sum of the weights")
    checkpoint = untied(checkpoint, adapters)
    found = places(checkpoint.config)
    changes: dict[str, list[Change]] = {}
    for adapter in adapters:
        for name, change in Fit(
            adapter, found, checkpoint.tensors, Ranks(adapter.config, str(adapter.folder))
        ).changes():
            changes.setdefault(name, []).append(change)
    tensors = dict(checkpoint.tensors)
    for name, those in changes.items():
        tensor = tensors[name]
        assert isinstance(tensor, StoredTensor)
        refuse_conflict(name, those)
        tensors[name] = MergedTensor(tensor, tuple(sorted(those, key=turn)))
    return replace(checkpoint, tensors=tensors, adapters=tuple(adapters))


def check_merged(artifact: Artifact, given: Sequence[Adapter]) -> None:
    """The artifact must have been made with these very adapters. Raises ArtifactError."""
    made_with = artifact.manifest.source.adapters
    if [(each.weight, each.files) for each in made_with] != [(each.weight, each.files) for each in given]:
        words = [f"--adapter {adapter.name}={adapter.weight:g}" for adapter in made_with]
        advice = f"{len(words)} adapters; give them: {' '.join(words)}" if words else "no adapter; leave --adapter out"
        raise ArtifactError(f"{artifact.folder}: was made with {advice}")


def turn(change: Change) -> int:
    """What replaces rows comes before what is added to them; a token's trained row replaces their sum."""
    return 0 if isinstance(change, Replaced) else 2 if isinstance(change, TrainedRows) else 1


def untied(checkpoint: Checkpoint, adapters: Sequence[AdapterFolder]) -> Checkpoint:
    """The checkpoint with a head of its own where an adapter changes one of two tied tables, and not both. So PEFT runs
    it; its merge_and_unload changes both, and warns. Raises AdapterError where the model has no such head."""
    parts = [
        adapter for adapter in adapters
        if HEAD_MODULE in adapter.parts
        or (EMBEDDING_MODULE in adapter.parts and not adapter.config.tied and not only_tokens(adapter))
    ]  # fmt: skip
    config = checkpoint.config
    if not config.tie_word_embeddings or not parts:
        return checkpoint
    config = replace(config, tie_word_embeddings=False)
    if HEAD not in config.tensor_shapes():
        raise AdapterError(
            f"{parts[0].folder}: changes the embedding or the head alone, which are one table in this model; train it "
            "without them"
        )
    embedding = checkpoint.tensors[EMBEDDING]
    assert isinstance(embedding, StoredTensor)
    tensors = dict(checkpoint.tensors) | {HEAD: StoredTensor(HEAD, embedding.pieces)}
    return replace(
        checkpoint,
        config=config,
        tensors={name: tensors[name] for name in config.tensor_shapes()},
        notes=[
            *checkpoint.notes,
            f"{parts[0].name} changes one of the two tied tables, so the head has one of its own",
        ],
    )


def only_tokens(adapter: AdapterFolder) -> bool:
    """Whether it trains some rows of the embedding alone, which PEFT does in a tied head too."""
    return set(adapter.parts[EMBEDDING_MODULE]) <= {"tokens"}


def refuse_conflict(name: str, changes: Sequence[Change]) -> None:
    """Rows that are trained as a whole, or have a length of their own, have one adapter. Raises AdapterError."""
    for change in changes:
        others = [
            other
            for other in changes
            if other.adapter != change.adapter
            and other.first < change.first + change.count
            and change.first < other.first + other.count
        ]
        alone = isinstance(change, Replaced | TrainedRows) or (isinstance(change, LowRank) and change.magnitude)
        if alone and others:
            raise AdapterError(
                f"{change.adapter} and {others[0].adapter} both change {name}, and the first does not add to it (it is "
                "DoRA, or saved whole); give one of them"
            )
