"""An export on the Hugging Face hub."""

from pathlib import Path

from synthalign.tables.hub import gist


def check_repo(repo: str) -> str:
    """Return the name of a model to push to.

    Raises:
        ValueError: It is no such name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        owned = False
    else:
        owned = "/" in repo
    if not owned:
        raise ValueError(f"{repo!r} is no name of a model on the hub: say owner/name")
    return repo


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload an export. Weights and configurations of an older one that were there, and are not now, are deleted.

    Args:
        folder: The export; it stays.
        repo: ``owner/name`` of the model; it is made if need be. The token is the one the hub's own tools use
            (``hf auth login``, or the environment's HF_TOKEN).
        private: Make it private.

    Returns:
        Its address.

    Raises:
        ValueError: ``private`` was asked for, and the model exists and is public.
        RuntimeError: The hub could not be reached, or refused.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(check_repo(repo), private=private or None, exist_ok=True)
        public = private and not api.repo_info(repo).private
        if not public:
            stale = ["*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json"]
            api.upload_folder(repo_id=repo, folder_path=folder, delete_patterns=stale, commit_message="Export")
    except Exception as error:  # the library lets its transport's own exceptions through
        raise RuntimeError(f"not pushed to {repo} ({gist(error)}); the files are in {folder}") from None
    if public:
        raise ValueError(f"not pushed: {repo} exists and is public; the files are in {folder}")
    return str(address)
