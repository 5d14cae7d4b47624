"""A step of nine families, taken on fakes, takes what the real one does."""

import pytest
import torch
from dpo.nine import NINE, policy_and_batch

from synthalign.dpo.features import image_features
from synthalign.dpo.fused import fuse
from synthalign.dpo.layouts import Tree
from synthalign.dpo.logps import pair_logps
from synthalign.dpo.policy import LoRA, adapters_off
from synthalign.plan import Live
from synthalign.planning.step import count, skeleton
from synthalign.vlm.families import base_of

RANK = LoRA(r=4)


@pytest.mark.parametrize("family", NINE, ids=lambda family: getattr(family, "__name__", str(family)))
def test_a_step_of_the_family_takes_what_is_said(family):
    network, batch = policy_and_batch(family, torch.float32)
    for parameter in network.parameters():
        parameter.grad = None
    fuse(network)
    with Live() as live:
        features, laid = image_features(network, batch), Tree()(network, batch)
        with torch.no_grad(), adapters_off(network):
            pair_logps(network, laid, features)
        logps = pair_logps(network, laid, features)
        kept = live.now
        (logps.chosen - logps.rejected).sum().backward()
    config = base_of(network).config
    fake = skeleton(config, dtype="float32", lora=RANK)
    said = count(fake, batch, Tree())
    assert said.kept == pytest.approx(kept, rel=0.15)
    assert max(said.forward, said.fresh) == pytest.approx(live.peak, rel=0.15)
