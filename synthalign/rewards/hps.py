"""HPSv2 and HPSv2.1: CLIP tuned on which of two images people prefer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from synthalign.batching import in_batches
from synthalign.checkpoints import assemble, read_file
from synthalign.rewards.open_clip import rename
from synthalign.rewards.pixels import whole_square
from synthalign.weights import DType, check_folder, free_cuda, load, resolve_device, resolve_dtype


@dataclass(frozen=True, kw_only=True)
class HPSReward:
    """Scores an image by cos(text embedding, image embedding): an ImageReward.

    Source: Human Preference Score v2 (arXiv 2306.09341), the package hpsv2 1.2.0. The whole image is seen, on black.

    Args:
        model: Folder or hub id that holds the checkpoint.
        file: The checkpoint, as open_clip writes it; HPS_v2_compressed.pt is version 2.
        clip: Folder or hub id of the CLIP that was tuned: its configuration and tokenizer are read, its weights not.
        revision: Commit, tag or branch of the model on the hub.
        antialias: Filter before shrinking an image. hpsv2 does so with torchvision 0.17 or later, and does not with
            earlier ones, which the model was tuned with.
        dtype: Type of the weights; auto: as they were saved.
        device: Where to run; auto: the first CUDA device, or the CPU.
        batch_size: Images scored at once.
    """

    model: str = "xswu/HPSv2"
    file: str = "HPS_v2.1_compressed.pt"
    clip: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    revision: str | None = None
    antialias: bool = True
    dtype: DType = "float32"
    device: str = "auto"
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant, and a folder that is not there."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        check_folder(self.model)
        check_folder(self.clip)

    @cached_property
    def network(self) -> Any:  # noqa: ANN401
        """The loaded model, in eval mode."""
        from transformers import CLIPConfig, CLIPModel

        config = load(CLIPConfig, self.clip)
        tensors = rename(read_file(self.model, self.file, revision=self.revision))
        source = f"{self.file} of model {self.model!r}"
        network = assemble(CLIPModel, config, tensors, source=source, dtype=resolve_dtype(self.dtype))
        return network.to(resolve_device(self.device))

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """The loaded tokenizer."""
        from transformers import AutoTokenizer

        return load(AutoTokenizer, self.clip)

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Tensor:
        """Return n scores, shape (n,), float32 on the CPU; higher is better. Prompts too long for the model are cut."""
        rows = list(zip(prompts, images, strict=True))
        return torch.tensor(in_batches(rows, self.batch_size, self._score, type(self).__name__))

    @torch.no_grad()
    def _score(self, rows: Sequence[tuple[str, Image]]) -> list[float]:
        network, config = self.network, self.network.config
        tokens = self.tokenizer(
            [prompt for prompt, _ in rows],
            padding=True,
            truncation=True,
            max_length=config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(network.device)
        side = config.vision_config.image_size
        pixels = torch.stack([whole_square(image, side, antialias=self.antialias) for _, image in rows])
        image = network.get_image_features(pixel_values=pixels.to(network.device, network.dtype)).pooler_output
        text = network.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return torch.cosine_similarity(text.float(), image.float(), dim=-1).tolist()

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        self.__dict__.pop("network", None)
        free_cuda()
