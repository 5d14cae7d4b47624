"""A model's processor: of a family whose videos alone want torchvision, loaded for images without."""

import sys
from types import SimpleNamespace
from typing import Any

from synthalign.weights import load

VIDEO = "video_processor"

EXTRAS = {"torchvision": "torchvision", "num2words": "smolvlm"}
"""Packages that processors ask for, as their errors name them; and the extra that brings each."""


def load_processor(model: str, *, revision: str | None = None) -> Any:  # noqa: ANN401 - every family has its own class
    """Load a model's processor.

    Processors of families that take videos too have a part for these, which needs torchvision. Where that is not
    installed, the same processor is loaded without the part: what it gives for images and text stays as it is.

    Args:
        model: Folder, or id on the Hugging Face hub.
        revision: Commit, tag or branch on the hub.

    Raises:
        ValueError: As ``synthalign.weights.load``; or the processor needs a package that is not installed.
    """
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available
    from transformers.video_processing_utils import VideoProcessorMixin

    try:
        try:
            return load(AutoProcessor, model, revision=revision)
        except ImportError:
            kind = None if is_torchvision_available() else _class_of(model, revision)
            # A constructor takes its parts in order: only the last can be left out.
            if kind is None or kind.get_attributes()[-1] != VIDEO:
                raise
            settings, _ = VideoProcessorMixin.get_video_processor_dict(model, revision=revision)
            return load(_for_images(kind, settings), model, revision=revision)
    except ImportError as error:
        said = " ".join(str(error).split()).partition(". ")[0]
        extra = next((extra for package, extra in EXTRAS.items() if package in said.lower()), None)
        way = f": pip install 'synthalign[{extra}]'" if extra else ""
        raise ValueError(f"the processor of {model!r} cannot be loaded: {said}{way}") from error


def packages_of(model: str, *, revision: str | None = None) -> list[str]:
    """Name what has to be installed beside transformers for it to load a model's processor, videos and all.

    Args:
        model: Folder, or id on the Hugging Face hub.
        revision: Commit, tag or branch on the hub.

    Raises:
        ValueError: As ``synthalign.weights.load``.
    """
    if (kind := _class_of(model, revision)) is None:
        return []
    asked = {
        "torchvision": VIDEO in kind.get_attributes(),
        "num2words": hasattr(sys.modules[kind.__module__], "num2words"),  # which its file imports where it is there
    }
    return [package for package in EXTRAS if asked[package]]


def _class_of(model: str, revision: str | None) -> Any:  # noqa: ANN401
    """Return the class of processors that a model's family has; None where it has none."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    return PROCESSOR_MAPPING.get(type(load(AutoConfig, model, revision=revision)), None)


def _for_images(kind: Any, settings: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return a class of processors without its part for videos, whose settings are given."""

    class ForImages(kind):
        # SmolVLM's reads these two whenever it renders a prompt.
        video_processor = SimpleNamespace(num_frames=settings.get("num_frames"), fps=settings.get("fps"))

        @classmethod
        def get_attributes(cls) -> list[str]:
            return list(kind.get_attributes()[:-1])

        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **others: Any) -> list[Any]:  # noqa: ANN401
            # Some constructors want the part all the same; what they hand on of it is not kept.
            return [*super()._get_arguments_from_pretrained(*args, **others), None]

        def to_dict(self) -> dict[str, Any]:
            return {**super().to_dict(), VIDEO: settings}  # so that what is saved is whole

        def __reduce__(self) -> tuple[Any, ...]:  # workers that are not forked get a pickle
            return _empty, (kind, settings), self.__dict__

    ForImages.__name__ = kind.__name__  # under which it is saved
    return ForImages


def _empty(kind: Any, settings: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return a processor for images to be filled."""
    made = _for_images(kind, settings)
    return made.__new__(made)
