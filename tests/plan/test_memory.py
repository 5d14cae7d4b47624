"""Memory and traffic of a device, put together by hand for sizes that one can follow."""

from synthalign.plan import OptimizerCost, memory_of, traffic_of
from synthalign.plan.memory import Counted, Shares

SHARES = Shares(
    language=800, encoder=50, trained=80, trained_numbers=20, largest_layer=100, root=200, trained_in_layer=10
)
STEP = Counted(forward=300, backward=310, fresh=370, kept=240, operations={})
ADAMW = OptimizerCost("AdamW", 8.0, 4.0)


def memory(spread, world_size, **changes):
    settings = {"frozen_copy": False, "images": 7, **changes}
    return memory_of(SHARES, STEP, ADAMW, spread=spread, world_size=world_size, **settings)


def test_one_device_holds_everything():
    found = memory("whole", 1)
    assert found.lasting == 800 + 50 + 80 + 80 + 160
    assert found.step == 7 + 240 + 60  # 370 less the gradients, which are counted already, is less than 300
    assert found.peak == found.lasting + found.step


def test_ddp_holds_everything_and_the_gradients_once_more():
    assert memory("ddp", 8).lasting == memory("whole", 1).lasting + 80


def test_fsdp_shares_all_but_the_encoder_and_gathers_layers():
    found = memory("sharded", 8)
    assert found.lasting == 100 + 50 + 10 + 10 + 20
    assert found.gathered == 200 + 2 * 100 + 2 * 10
    assert found.step == found.gathered + 7 + 240 + 70


def test_gradients_of_earlier_batches_stay_through_the_backward_pass():
    assert memory("whole", 1, accumulates=True).step == 7 + 240 + 70


def test_a_frozen_copy_is_spread_as_the_policy_is():
    assert memory("ddp", 8, frozen_copy=True).lasting == memory("ddp", 8).lasting + 930
    found, without = memory("sharded", 8, frozen_copy=True), memory("sharded", 8)
    assert found.lasting == without.lasting + 880 // 8 + 50
    assert found.gathered == without.gathered + 200


def test_an_optimizer_that_takes_more_than_a_step_makes_the_peak():
    greedy = ADAMW._replace(update=100.0)
    found = memory_of(SHARES, STEP, greedy, spread="whole", world_size=1, frozen_copy=False, images=7)
    assert found.step == 7 + 20 * 100


def test_ddp_sends_gradients_twice_less_a_share():
    found = traffic_of(SHARES, spread="ddp", world_size=4, forwards=2, batches=3)
    assert (found.gathered, found.reduced) == (0, 2 * 80 * 3 / 4)


def test_fsdp_gathers_layers_for_every_pass_and_the_root_for_the_forward_ones():
    found = traffic_of(SHARES, spread="sharded", world_size=4, forwards=2, batches=3)
    assert found.gathered == 3 / 4 * 3 * (680 * 3 + 200 * 2)
    assert found.reduced == 3 / 4 * 80


def test_one_device_sends_nothing():
    assert traffic_of(SHARES, spread="ddp", world_size=1, forwards=2, batches=1).total == 0
