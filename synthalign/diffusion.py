"""Images from text, by any diffusers text-to-image pipeline."""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

import torch
from PIL.Image import Image

from synthalign.batching import in_batches
from synthalign.types import ImageRequest
from synthalign.weights import DType, check_folder, free_cuda, load, resolve_device, resolve_dtype

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DiffusionGenerator:
    """Draws with any pipeline that diffusers' AutoPipelineForText2Image loads: an ImageGenerator.

    A safety checker that comes with the pipeline, as with Stable Diffusion 1.5, stays in force: it makes the images it
    flags black, and the log names their prompts.

    Args:
        model: Folder or hub id of the pipeline.
        revision: Commit, tag or branch on the hub.
        variant: File variant on the hub, such as fp16.
        num_inference_steps: Denoising steps per image.
        negative_prompt: What the images should not show; "" leaves it to the pipeline.
        guidance: The pipeline's argument that takes a request's guidance scale: guidance_scale, or true_cfg_scale for
            Qwen-Image, and for FLUX with a negative prompt. Models distilled to a few steps take no notice of it.
        height: Of the images, pixels; the pipeline's own by default.
        width: Of the images, pixels; the pipeline's own by default.
        without: Components not to load, such as text_encoder_3 and tokenizer_3 (SD3's T5), or safety_checker.
        dtype: Type of the weights; auto: bfloat16 on CUDA, float32 on the CPU.
        device: Where to run; auto: the first CUDA device, or the CPU.
        batch_size: Images drawn at once; halved where memory runs out.
    """

    model: str
    revision: str | None = None
    variant: str | None = None
    num_inference_steps: int = 28
    negative_prompt: str = ""
    guidance: Literal["guidance_scale", "true_cfg_scale"] = "guidance_scale"
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
        self._check_arguments(pipeline)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """Draw one RGB image per request. Requests of one guidance scale that follow each other share a batch."""
        images: list[Image] = []
        for _, same in groupby(requests, key=lambda request: request.guidance_scale):
            images += in_batches(list(same), self.batch_size, self._draw, type(self).__name__)
        return images

    def _draw(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """Draw requests of one guidance scale."""
        # CPU generators give the same starting noise whatever the device.
        noise = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        settings: dict[str, Any] = {"height": self.height, "width": self.width}
        # Left out rather than empty: for "no negative prompt", SDXL guides away from zeros, not from the empty prompt.
        if self.negative_prompt or self.guidance == "true_cfg_scale":
            settings["negative_prompt"] = [self.negative_prompt] * len(requests)
        output = self.pipeline(
            [request.prompt for request in requests],
            num_inference_steps=self.num_inference_steps,
            generator=noise,
            **{self.guidance: requests[0].guidance_scale},
            **{name: value for name, value in settings.items() if value is not None},
        )
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(requests)
        if flagged := [request.prompt for request, flag in zip(requests, flags, strict=True) if flag]:
            log.warning(
                "the safety checker of %s made %d of %d images black: %s",
                *(self.model, len(flagged), len(requests), ", ".join(repr(prompt[:60]) for prompt in flagged)),
            )
        return [image.convert("RGB") for image in output.images]

    def _check_arguments(self, pipeline: Any) -> None:  # noqa: ANN401
        """Refuse settings that the pipeline does not take, or takes without effect."""
        taken, name = inspect.signature(pipeline.__call__).parameters, type(pipeline).__name__
        if self.guidance not in taken:
            raise ValueError(f"{name} takes no {self.guidance}: see the field guidance of DiffusionGenerator")
        if self.negative_prompt and "negative_prompt" not in taken:
            raise ValueError(f"{name} takes no negative_prompt, got {self.negative_prompt!r}")
        if self.negative_prompt and "true_cfg_scale" in taken and self.guidance != "true_cfg_scale":
            raise ValueError(f"{name} heeds a negative_prompt only with guidance: true_cfg_scale")

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        self.__dict__.pop("pipeline", None)
        free_cuda()
