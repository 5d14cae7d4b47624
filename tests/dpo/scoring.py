"""Shortcuts from a batch to its log-probs, and the model's own way to the same."""

from typing import Any

import torch
from torch import Tensor

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.features import image_features
from synthalign.dpo.layouts import Layout, Tree
from synthalign.dpo.logps import pair_logps
from synthalign.types import PairLogps
from synthalign.vlm.families import base_of


def logps_of(network: Any, batch: PreferenceBatch, layout: Layout | None = None) -> PairLogps:
    """Score a batch under a layout, by default the tree."""
    return pair_logps(network, (layout or Tree())(network, batch), image_features(network, batch))


def own_logps(network: Any, batch: PreferenceBatch) -> Tensor:
    """Score response after response by the model's own forward from pixels: all logits, log_softmax; (N,)."""
    found = []
    for pair in range(len(batch)):
        for side in (batch.chosen[pair], batch.rejected[pair]):
            prompt = batch.prompts[pair]
            ids = torch.cat([prompt["input_ids"], side])
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            for key in prompt.keys() - {"input_ids"}:
                # a response is text, 0; to PaliGemma it is a suffix, 1
                fill = 1 if base_of(network).config.model_type == "paligemma" else 0
                inputs[key] = torch.cat([prompt[key], torch.full_like(side, fill)])
            rows = {key: value[None] for key, value in inputs.items()}
            logits = network(**rows, **_image(batch, batch.image_of[pair]), use_cache=False).logits[0]
            logps = logits[len(prompt["input_ids"]) - 1 : -1].log_softmax(-1)
            found.append(logps.gather(-1, side[:, None])[:, 0])
    return torch.cat(found)


def _image(batch: PreferenceBatch, place: int) -> dict[str, Tensor]:
    """Return what the model takes for one image of a batch."""
    if "image_grid_thw" not in batch.images:
        return {key: value[place : place + 1] for key, value in batch.images.items()}
    grids = batch.images["image_grid_thw"]
    patches = [int(grid.prod()) for grid in grids]
    return {
        "pixel_values": batch.images["pixel_values"].split(patches)[place],
        "image_grid_thw": grids[place : place + 1],
    }
