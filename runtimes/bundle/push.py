"""A folder to a repository of Hugging Face's hub, as the user who is logged in there (`hf auth login`, or HF_TOKEN)."""

from __future__ import annotations

from pathlib import Path

from runtimes.bundle.card import HUB_NAME
from runtimes.errors import RequestError


def check_repository(name: str) -> None:
    """Raises RequestError for what is no owner/name."""
    if not HUB_NAME.fullmatch(name):
        raise RequestError(f"{name!r:.80} is no repository of the hub; give owner/name")


def push_folder(folder: Path, repository: str, message: str) -> str:
    """Make the repository where it is not there (private), and upload every file in one commit. -> its address.

    Raises RequestError.
    """
    check_repository(repository)
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # the hub's, the system's, or of the network library, which is another in each version
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RequestError(
            f"{repository}: cannot be uploaded ({reason}); {folder} is whole: log in with `hf auth login`, then run "
            f"`hf upload {repository} {folder}`"
        ) from error
    return f"{api.endpoint}/{repository}"
