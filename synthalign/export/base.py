"""The base model of a run's policy: where it is, what it is called, and the small files beside its weights."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthalign.export.push import check_repo
from synthalign.export.source import Source
from synthalign.tables.hub import gist
from synthalign.weights import check_folder, load

SMALL = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".spm")
"""Ends of the names of files that make up configuration, tokenizer and processor."""

TERMS = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
"""Begins of the names of files that have to go with the weights."""

NOT_TAKEN = (".index.json", "adapter_config.json", "export.json")


class Base(NamedTuple):
    """A base model."""

    model: str
    """Folder or hub id, to load it from."""

    revision: str | None
    """On the hub."""

    name: str
    """What the export calls it: a hub id, or the absolute path of a folder; of a whole model, the folder's name."""

    is_public: bool
    """Whether the name means something on other machines."""

    @property
    def asked(self) -> str | None:
        """The revision to load; None of a folder, whatever it is called."""
        return None if Path(self.model).is_dir() else self.revision


def base_of(source: Source, given: str | None = None, name: str | None = None, *, needed: bool = True) -> Base:
    """Find the base of a run's policy.

    Args:
        source: The run.
        given: Folder or hub id (``OWNER/NAME@REVISION``) to take in place of that which the run names.
        name: What a folder is on the hub: ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.
        needed: Whether it will be loaded.

    Raises:
        ValueError: It is not there; or ``name`` is none, or is given of what has one.
    """
    policy, revision = source.policy("policy"), source.policy("revision")
    model = policy if given is None else given
    if given is not None and not Path(given).is_dir():
        model, _, pinned = given.partition("@")
        revision = pinned or (revision if model == policy else None)
    local = Path(model).is_dir()
    try:
        check_folder(model)
    except ValueError as error:
        if needed:
            hint = "; say with --base where the run's policy is now, or what it is on the hub" if given is None else ""
            raise ValueError(f"the base is not here: {error}{hint}") from None
        local = True  # it was
    if name is None:
        return Base(model, None, str(Path(model).absolute()), False) if local else Base(model, revision, model, True)
    if not local:
        raise ValueError(f"--base-name is for a base in a folder, and this one is {model} of the hub: leave it out")
    called, _, pinned = name.partition("@")
    return Base(model, pinned or None, check_repo(called), True)


def skeleton_of(base: Base) -> Any:  # noqa: ANN401 - any Hugging Face model
    """Make the base's network without its weights.

    Raises:
        ValueError: The base cannot be loaded.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = load(AutoConfig, base.model, revision=base.asked)
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except ValueError as error:
        raise ValueError(f"base {base.model!r} is no vision-language model: {gist(error)}") from error


def check_fits(skeleton: Any, adapter: dict[str, Any], tensors: dict[str, Tensor], base: Base) -> None:  # noqa: ANN401
    """Refuse an adapter that is not of this base's architecture.

    Raises:
        ValueError: Layers of one are not in the other, or differ in shape.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    try:
        config = PeftConfig.from_peft_type(**adapter | {"inference_mode": True, "base_model_name_or_path": None})
        with torch.device("meta"):
            network = get_peft_model(skeleton, config, autocast_adapter_dtype=False)
        wanted = {
            name: value.shape for name, value in get_peft_model_state_dict(network, save_embedding_layers=False).items()
        }
    except Exception as error:  # whatever a strange value in the adapter's configuration makes of PEFT
        raise ValueError(f"the adapter fits no layer of {base.model!r}: {gist(error)}") from error
    saved = {name: value.shape for name, value in tensors.items()}
    if differing := sorted(wanted.items() ^ saved.items()):
        name = differing[0][0]
        sides = [f"{tuple(one[name])}" if name in one else "nothing" for one in (saved, wanted)]
        raise ValueError(
            f"the adapter is not of {base.model!r}: at {name} it has {sides[0]}, where the base takes {sides[1]}"
        )


def copy_small_files(base: Base, folder: Path, commit: str | None) -> None:
    """Copy what makes up a base's configuration, tokenizer and processor, byte for byte, and its terms of use.

    Byte for byte, so that whatever reads the base reads the export: written anew by this version of transformers, they
    would have names that earlier readers do not know.

    Args:
        base: The base.
        folder: Where to.
        commit: Of the base's weights on the hub.

    Raises:
        ValueError: The hub cannot be reached.
    """
    home = folder_of(base, commit)
    for path in sorted(home.rglob("*")):
        inside = path.relative_to(home)
        small = path.name.endswith(SMALL) and not path.name.endswith(NOT_TAKEN)
        shallow = len(inside.parts) == 1 or inside.parts[0] == "additional_chat_templates"
        if shallow and path.is_file() and (small or path.name.upper().startswith(TERMS)):
            (folder / inside).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / inside)


def folder_of(base: Base, commit: str | None) -> Path:
    """Return where the files of a base lie here.

    Raises:
        ValueError: The hub cannot be reached.
    """
    if Path(base.model).is_dir():
        return Path(base.model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns = [*(f"*{end}" for end in SMALL), *(f"{begin}*" for begin in TERMS)]
    try:
        return Path(snapshot_download(base.model, revision=commit or base.asked, allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ValueError(f"the files of {base.model!r} cannot be had: {gist(error)}") from error
