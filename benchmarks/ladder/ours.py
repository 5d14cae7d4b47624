"""Our own step, part by part: each rung of the ladder is a layout and what is switched on besides."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthalign.dpo.features import KeptFeatures, image_features
from synthalign.dpo.layouts import Layout, Rows, Tree, Trie
from synthalign.dpo.logps import pair_logps
from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA, adapters_off
from synthalign.types import PairLogps

from .peers import BETA
from .scene import Scene, adapters, spread_adapters, twin


class Rung(NamedTuple):
    """What is switched on."""

    layout: Layout
    fused: bool = False
    checkpointing: bool = False
    reference: bool = False  # kept from an earlier step
    features: bool = False  # likewise

    @property
    def floor(self) -> str:
        """Name of the floor that it stands on."""
        return ("cached" if self.features else "cached_reference") if self.reference else "on_the_fly"


def network_of(scene: Scene, *, fused: bool = False, checkpointing: bool = False) -> Any:  # noqa: ANN401
    """Return a model with adapters, over the scene's weights."""
    network = LoRA(**adapters(scene.rank))(twin(scene.network))
    spread_adapters(network)
    if fused:
        from synthalign.dpo.fused import fuse

        fuse(network)
    if checkpointing:
        from synthalign.dpo.checkpointing import checkpoint_layers

        checkpoint_layers(network)
    return network.train()


def step_of(network: Any, rung: Rung, scene: Scene) -> Callable[[], Tensor]:  # noqa: ANN401
    """Return a step: lay the batch out, encode its images, score reference and policy, go back."""
    loss_of, batch = DPO(beta=BETA), scene.batch
    kept = KeptFeatures(limit_gib=8) if rung.features else None

    def reference_of(laid: Any, features: Any) -> PairLogps:  # noqa: ANN401
        with torch.no_grad(), adapters_off(network):
            return pair_logps(network, laid, features)

    known = reference_of(rung.layout(network, batch), image_features(network, batch, kept)) if rung.reference else None

    def step() -> Tensor:
        laid = rung.layout(network, batch)
        features = image_features(network, batch, kept)
        reference = known or reference_of(laid, features)
        loss = loss_of(pair_logps(network, laid, features), reference).loss.mean()
        loss.backward()
        return loss.detach()

    return step


def adamw(network: Any) -> torch.optim.Optimizer:  # noqa: ANN401
    """Return what TRL's defaults make of the adapters, at a learning rate of 0, so that every round is the same."""
    return torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0, fused=True)


PAIRS = {
    "rows, image once, lean head": Rung(Rows()),
    "tree": Rung(Tree()),
    "tree, fused": Rung(Tree(), fused=True),
    "the same, checkpointing": Rung(Tree(), fused=True, checkpointing=True),
    "tree, fused, cached reference": Rung(Tree(), fused=True, reference=True),
    "the same, cached features": Rung(Tree(), fused=True, reference=True, features=True),
}
"""Two pairs about two images."""

ONE_IMAGE = {
    "tree, fused": Rung(Tree(), fused=True),
    "trie, fused": Rung(Trie(), fused=True),
    "the same, cached reference, features": Rung(Trie(), fused=True, reference=True, features=True),
}
"""Four pairs about one image."""
