"""Image rewards of the CLIP type, PickScore among them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from synthalign.batching import in_batches
from synthalign.weights import DType, check_folder, free_cuda, load, load_network, resolve_device


@dataclass(frozen=True, kw_only=True)
class CLIPReward:
    """Scores an image by exp(logit_scale) * cos(text embedding, image embedding): an ImageReward.

    PickScore v1 (Kirstain et al. 2023) is such a model: yuvalkirstain/PickScore_v1 with the processor of
    laion/CLIP-ViT-H-14-laion2B-s32B-b79K.

    Args:
        model: Folder or hub id of a CLIPModel.
        processor: Folder or hub id of its processor; the model's by default.
        revision: Commit, tag or branch of the model on the hub.
        dtype: Type of the weights; auto: as they were saved.
        device: Where to run; auto: the first CUDA device, or the CPU.
        batch_size: Images scored at once.
    """

    model: str
    processor: str | None = None
    revision: str | None = None
    dtype: DType = "float32"
    device: str = "auto"
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant, and a folder that is not there."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        check_folder(self.model)
        check_folder(self.processor or self.model)

    @cached_property
    def network(self) -> Any:  # noqa: ANN401
        """The loaded model, in eval mode."""
        from transformers import CLIPModel

        network = load_network(CLIPModel, self.model, revision=self.revision, dtype=self.dtype)
        return network.to(resolve_device(self.device))

    @cached_property
    def preprocess(self) -> Any:  # noqa: ANN401
        """The loaded processor."""
        from transformers import AutoProcessor

        revision = self.revision if self.processor is None else None
        return load(AutoProcessor, self.processor or self.model, revision=revision)

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Tensor:
        """Return n scores, shape (n,), float32 on the CPU; higher is better. Prompts too long for the model are cut."""
        rows = list(zip(prompts, images, strict=True))
        return torch.tensor(in_batches(rows, self.batch_size, self._score, type(self).__name__))

    @torch.no_grad()
    def _score(self, rows: Sequence[tuple[str, Image]]) -> list[float]:
        network = self.network
        inputs = self.preprocess(
            text=[prompt for prompt, _ in rows],
            images=[image for _, image in rows],
            padding=True,
            truncation=True,
            max_length=network.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(network.device)
        image = network.get_image_features(pixel_values=inputs["pixel_values"].to(network.dtype)).pooler_output
        text = network.get_text_features(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).pooler_output
        cosine = torch.cosine_similarity(text.float(), image.float(), dim=-1)
        return (network.logit_scale.float().exp() * cosine).tolist()

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        self.__dict__.pop("network", None)
        free_cuda()
