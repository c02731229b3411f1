"""What `phi-edge bundle --for hub` adds to the artifact's files: the checkpoint's config.json, and a model card."""

from __future__ import annotations

from pathlib import Path

from export.artifact import Artifact
from export.errors import CheckpointError

CONFIG, CARD = "config.json", "README.md"
LICENCE = ("license", "license_name", "license_link")  # the hub's keys


def hub_files(artifact: Artifact, checkpoint: str | None, licence: str | None) -> dict[str, bytes]:
    """Path -> content. Without a checkpoint it is the hub's, where the artifact was made from one there. The licence is
    that of its card, if none is given.

    Raises CheckpointError and RequestError.
    """
    from runtimes.bundle.card import model_card

    folder = checkpoint_folder(artifact, checkpoint)
    config = (folder / CONFIG).read_bytes() if (folder / CONFIG).is_file() else b""
    check_config(artifact, folder, config)
    words = {"license": licence} if licence is not None else card_licence(folder / CARD)
    return {CONFIG: config, CARD: model_card(artifact, words).encode()}


def checkpoint_folder(artifact: Artifact, checkpoint: str | None) -> Path:
    """Where config.json and the card are. Raises CheckpointError."""
    from export.checkpoint.find import HUB_ID, find_checkpoint, first_line

    source = artifact.manifest.source
    where = checkpoint or (f"{source.name}@{source.revision}" if source.revision else source.name)
    match = HUB_ID.fullmatch(where)
    if match is None or Path(where).is_dir():
        if checkpoint is None and where != "tiny":
            raise CheckpointError(
                "a folder for the hub has the checkpoint's config.json, which this lacks; give --checkpoint FOLDER"
            )
        return find_checkpoint(where, [CONFIG]).folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(match["name"], revision=match["revision"], allow_patterns=[CONFIG, CARD]))
    except Exception as error:  # the hub's, the system's, or of the network library, which is another in each version
        raise CheckpointError(
            f"{where}: cannot be downloaded ({first_line(error)}); give --checkpoint FOLDER"
        ) from error


def check_config(artifact: Artifact, folder: Path, config: bytes) -> None:
    """Raises CheckpointError for another checkpoint's."""
    import hashlib

    expected = artifact.manifest.source.files[CONFIG].sha256
    if hashlib.sha256(config).hexdigest() != expected:
        raise CheckpointError(
            f"{artifact.folder}: was not made from {folder} ({CONFIG} differs); give its own checkpoint"
        )


def card_licence(card: Path) -> dict[str, str]:
    """What a checkpoint's card says of its licence; empty where it says nothing that can be read."""
    from huggingface_hub import ModelCard

    if not card.is_file():
        return {}
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # YAML of somebody else's: the licence is not known then
        return {}
    return {key: data[key] for key in LICENCE if isinstance(data.get(key), str)}
