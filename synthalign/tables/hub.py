"""Datasets of the Hugging Face hub: loaded by name, and pushed."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

REPO = r"[\w.-]+/[\w.-]+"
SHARD = "train-"
"""How the names of a set's files of parquet begin."""

NAME = re.compile(rf"({REPO})(?:@([\w./-]+))?")
"""``owner/name`` of a dataset, or ``owner/name@revision``."""


def hub_table(name: str) -> Any:  # noqa: ANN401 - a Dataset, whose library ships no types
    """Open the train split of a dataset on the hub; it is downloaded once.

    Raises:
        ValueError: There is no such dataset, or the hub cannot be reached.
    """
    from datasets import load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    match = NAME.fullmatch(name)
    assert match is not None
    try:
        with suppress(OfflineModeIsEnabled):  # what was downloaded before is found without the hub then
            # Asked once: load_dataset tries for half a minute, and what was meant may be a mistyped path.
            HfApi().dataset_info(match[1], revision=match[2], timeout=10)
        return load_dataset(match[1], split="train", revision=match[2])
    except Exception as error:  # whatever the hub, the network, a builder or pyarrow says
        raise ValueError(
            f"no pairs at {name}: there is no such file or folder, and as a dataset of the hub it cannot be loaded "
            f"({gist(error)})"
        ) from None


def hub_folder(name: str, patterns: Sequence[str]) -> Path:
    """Bring files of a dataset on the hub here; they are downloaded once, and found without the hub then.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.
        patterns: Which files, as shell patterns over their paths.

    Returns:
        The folder they lie in, under their paths.

    Raises:
        ValueError: There is no such dataset, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    match = NAME.fullmatch(name)
    assert match is not None
    try:
        folder = snapshot_download(match[1], repo_type="dataset", revision=match[2], allow_patterns=list(patterns))
    except Exception as error:  # whatever the hub, the network or the disk says
        raise ValueError(
            f"{name}: there is no such file or folder, and as a dataset of the hub it cannot be loaded ({gist(error)})"
        ) from None
    return Path(folder)


def check_repo(repo: str) -> str:
    """Return the name of a repository to push to.

    Raises:
        ValueError: It is no such name.
    """
    if not re.fullmatch(REPO, repo):
        raise ValueError(f"{repo!r} is no name of a dataset on the hub: say owner/name")
    return repo


def push_folder(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload a folder that ``write_pairs`` wrote, all but what was left out of it. Local files stay.

    Shards of a set that was pushed there before, and had more of them, are deleted: they would be read as part of this.

    Args:
        folder: The folder.
        repo: ``owner/name`` of the dataset; it is made if need be. The token is the one the hub's own tools use
            (``hf auth login``, or the environment's HF_TOKEN).
        private: Make it private.

    Returns:
        Its address.

    Raises:
        ValueError: ``private`` was asked for, and the dataset exists and is public.
        RuntimeError: The hub could not be reached, or refused.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(check_repo(repo), repo_type="dataset", private=private or None, exist_ok=True)
        public = private and not api.repo_info(repo, repo_type="dataset").private
        if not public:
            api.upload_folder(
                repo_id=repo,
                repo_type="dataset",
                folder_path=folder,
                ignore_patterns="dropped.jsonl",
                delete_patterns=f"{SHARD}*.parquet",
                commit_message="Pairs",
            )
    except Exception as error:  # the library lets its transport's own exceptions through
        raise RuntimeError(f"not pushed to {repo} ({gist(error)}); the files are in {folder}") from None
    if public:
        raise ValueError(f"not pushed: {repo} exists and is public; the files are in {folder}")
    return str(address)


def gist(error: BaseException) -> str:
    """Say in one line what someone else's exception says in several, or none: the first, and what it announces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 1 + lines[0].endswith(":")]) if lines else type(error).__name__
