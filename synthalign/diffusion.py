"""Images from text, by any diffusers text-to-image pipeline."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from PIL.Image import Image

from synthalign.types import ImageRequest
from synthalign.weights import DType, check_folder, free_cuda, load, resolve_device, resolve_dtype


@dataclass(frozen=True, kw_only=True)
class DiffusionGenerator:
    """Draws with any pipeline that diffusers' AutoPipelineForText2Image loads: an ImageGenerator.

    Args:
        model: Folder or hub id of the pipeline.
        revision: Commit, tag or branch on the hub.
        variant: File variant on the hub, such as fp16.
        num_inference_steps: Denoising steps per image.
        negative_prompt: What the images should not show.
        height: Of the images, pixels; the pipeline's own by default.
        width: Of the images, pixels; the pipeline's own by default.
        without: Components not to load, such as text_encoder_3 and tokenizer_3 (SD3's T5).
        dtype: Type of the weights; auto: bfloat16 on CUDA, float32 on the CPU.
        device: Where to run; auto: the first CUDA device, or the CPU.
        batch_size: Images drawn at once.
    """

    model: str
    revision: str | None = None
    variant: str | None = None
    num_inference_steps: int = 28
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    without: tuple[str, ...] = ()
    dtype: DType = "auto"
    device: str = "auto"
    batch_size: int = 4

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant, and a folder that is not there."""
        check_folder(self.model)
        if self.num_inference_steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_inference_steps and batch_size must be >= 1, got {self.num_inference_steps}, {self.batch_size}"
            )

    @cached_property
    def pipeline(self) -> Any:  # noqa: ANN401 - every model family has its own class
        """The loaded pipeline."""
        from diffusers import AutoPipelineForText2Image

        device = resolve_device(self.device)
        dtype = resolve_dtype(self.dtype)
        if dtype == "auto":
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        pipeline = load(
            AutoPipelineForText2Image,
            self.model,
            revision=self.revision,
            dtype=dtype,
            use_safetensors=True,
            **({"variant": self.variant} if self.variant else {}),
            **dict.fromkeys(self.without),
        )
        if self.negative_prompt and not _takes_negatives(pipeline):
            raise ValueError(f"{type(pipeline).__name__} takes no negative_prompt, got {self.negative_prompt!r}")
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """Draw one RGB image per request. Requests of one guidance scale that follow each other share a batch."""
        images: list[Image] = []
        for guidance_scale, same in groupby(requests, key=lambda request: request.guidance_scale):
            group = list(same)
            for start in range(0, len(group), self.batch_size):
                images += self._draw(group[start : start + self.batch_size], guidance_scale)
        return images

    def _draw(self, requests: Sequence[ImageRequest], guidance_scale: float) -> list[Image]:
        # CPU generators give the same starting noise whatever the device.
        noise = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        settings: dict[str, Any] = {"height": self.height, "width": self.width}
        if _takes_negatives(self.pipeline):
            settings["negative_prompt"] = [self.negative_prompt] * len(requests)
        drawn = self.pipeline(
            [request.prompt for request in requests],
            num_inference_steps=self.num_inference_steps,
            guidance_scale=guidance_scale,
            generator=noise,
            **{name: value for name, value in settings.items() if value is not None},
        ).images
        return [image.convert("RGB") for image in drawn]

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        self.__dict__.pop("pipeline", None)
        free_cuda()


def _takes_negatives(pipeline: Any) -> bool:  # noqa: ANN401
    return "negative_prompt" in inspect.signature(pipeline.__call__).parameters
