"""What a run takes, put together for its reference and its strategy."""

import pytest
from dpo.nine import llava, policy_and_batch

from synthalign.dpo.layouts import Tree
from synthalign.planning.run import Run, reckon, spread_over


@pytest.fixture(scope="module")
def found():
    network, batch = policy_and_batch(llava)
    made = {}
    for reference in ("copy", "cached"):
        run = Run(config=network.config, dtype="float32", lora=None, layout=Tree(), reference=reference, on_cuda=False)
        made[reference] = reckon(run, batch)
    return made


def test_a_frozen_copys_layers_are_gathered_as_the_policys_are(found):
    copy, cached = (spread_over(found[one], "sharded", 4).traffic.gathered for one in ("copy", "cached"))
    shares = found["copy"].shares
    layers = shares.language + shares.trained - shares.root
    assert copy == 3 / 4 * (3 * layers + 2 * shares.root)  # its own forward pass besides the policy's two
    assert cached == 3 / 4 * (2 * layers + shares.root)


def test_the_older_fsdp_keeps_a_frozen_copy_whole(found):
    shares = found["copy"].shares
    newer, older = (spread_over(found["copy"], spread, 4) for spread in ("sharded", "fsdp"))
    assert older.memory.reference == shares.language + shares.trained + shares.encoder
    assert newer.memory.reference == (shares.language + shares.trained) // 4 + shares.encoder
    assert older.memory._replace(reference=0) == spread_over(found["cached"], "fsdp", 4).memory._replace(
        **{name: getattr(older.memory, name) for name in ("activations", "passing")}
    )
    assert older.traffic == spread_over(found["cached"], "fsdp", 4).traffic
