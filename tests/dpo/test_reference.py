"""A reference is what the policy was before it learnt anything, however its log-probs are come by."""

import copy
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo.spoken_pairs import batch_of, preparation, score, speak, start_rank
from jsonargparse import ArgumentParser

from synthalign.dpo.checkpointing import checkpoint_layers
from synthalign.dpo.fused import fuse
from synthalign.dpo.policy import load_policy
from synthalign.dpo.reference import AdaptersOff, Cached, FrozenCopy, Reference
from synthalign.types import PairLogps

PAIRS = speak(10)
IDS = [pair.id for pair in PAIRS]


@pytest.fixture
def bare(tiny_llava) -> Any:
    """A policy without adapter, all of whose weights are trained."""
    return load_policy(str(tiny_llava), dtype="float32").requires_grad_(True)


@pytest.fixture(scope="module")
def frozen(tiny_llava) -> Any:
    """What every reference should be."""
    return load_policy(str(tiny_llava), dtype="float32")


def ask(reference: Any, network: Any, pairs=PAIRS[:3]) -> PairLogps:
    return reference(network, [pair.id for pair in pairs], lambda model: score(model, batch_of(pairs)))


def assert_same(one: PairLogps, other: PairLogps) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def learn(network: Any) -> None:
    """Take a step that makes itself felt."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    score(network, batch_of(PAIRS[:2])).chosen.sum().backward()
    torch.optim.SGD(trained, lr=0.1).step()


class Unasked:
    """A score that nobody may ask for."""

    def __call__(self, *args: Any) -> PairLogps:
        raise AssertionError("scored once more")


# ---- adapters off, and a copy


def test_adapters_off_are_the_base_and_come_on_again(make_policy, frozen):
    policy = make_policy()
    before = score(policy, batch_of(PAIRS[:3]))
    AdaptersOff().begin(policy)
    reference = ask(AdaptersOff(), policy)
    assert_same(reference, score(frozen, batch_of(PAIRS[:3])))
    assert not reference.chosen.requires_grad
    assert_same(score(policy, batch_of(PAIRS[:3])), before)
    assert not torch.equal(before.chosen, reference.chosen)


def test_adapters_off_need_every_trained_weight_to_be_an_adapters(make_policy, bare, frozen):
    AdaptersOff().begin(frozen)
    with pytest.raises(ValueError, match=r"trains weights of its own \(.*Cached.*FrozenCopy") as refusal:
        AdaptersOff().begin(bare)
    assert "\n" not in str(refusal.value)
    policy = make_policy()
    policy.get_output_embeddings().weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"lm_head.weight, 1 in all"):
        AdaptersOff().begin(policy)
    assert sum("lora_" in name and p.requires_grad for name, p in policy.named_parameters()) == 28  # still trained


@pytest.mark.parametrize("fused", [False, True])
def test_a_copy_stays_what_the_policy_was(fused, bare, frozen):
    if fused:  # forwards of an instance's own must be the copy's own, too
        fuse(bare)
        checkpoint_layers(bare)
        fuse(frozen := copy.deepcopy(frozen))
    reference = FrozenCopy()
    reference.begin(bare)
    learn(bare)
    expected = score(frozen, batch_of(PAIRS[:3]))
    logps = ask(reference, bare)
    torch.testing.assert_close(logps, expected, rtol=1e-6 if fused else 0, atol=0)
    assert not logps.chosen.requires_grad
    assert not torch.allclose(score(bare, batch_of(PAIRS[:3])).chosen, expected.chosen)


def test_a_copy_of_a_policy_with_adapters_has_them_off(make_policy, frozen):
    reference, policy = FrozenCopy(), make_policy()
    reference.begin(policy)
    assert_same(ask(reference, policy), score(frozen, batch_of(PAIRS[:3])))


def test_a_copy_takes_the_dtype_that_a_strategy_gives_the_policy(bare, frozen):
    reference = FrozenCopy()
    reference.begin(bare)
    bare.bfloat16()
    expected = score(copy.deepcopy(frozen).bfloat16(), batch_of(PAIRS[:3]))
    assert_same(ask(reference, bare), expected)


# ---- the cache


@pytest.fixture
def cached(tmp_path) -> Cached:
    return Cached(folder=str(tmp_path / "cache"), shard_size=4)


def again(cached: Cached) -> Cached:
    """The cache of another run in the same folder."""
    return Cached(folder=cached.folder, shard_size=cached.shard_size)


def shards(cached: Cached) -> list[Path]:
    return sorted(Path(cached.folder).glob("*/*.parquet"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_cache_gives_back_the_very_bits(dtype, cached, make_policy):
    policy = make_policy(dtype)
    cached.prepare(policy, lambda: preparation(PAIRS))
    fresh = again(cached)
    fresh.prepare(policy, lambda: preparation(PAIRS, score=Unasked()))
    for start in range(0, 10, 2):  # the batches of the preparation
        batch = PAIRS[start : start + 2]
        expected = ask(AdaptersOff(), policy, batch)
        for one in (cached, fresh):
            assert_same(one(policy, [pair.id for pair in batch], Unasked()), expected)
    assert len(shards(cached)) == 3
    order = [IDS[7], IDS[0], IDS[3]]
    values = fresh(policy, order, Unasked()).chosen.tolist()
    assert values == [fresh(policy, [pair_id], Unasked()).chosen.item() for pair_id in order]


def test_the_cache_serves_the_training_of_all_weights(cached, bare, frozen):
    cached.prepare(bare, lambda: preparation(PAIRS))
    learn(bare)
    assert_same(cached(bare, IDS[:2], Unasked()), score(frozen, batch_of(PAIRS[:2])))


def test_values_are_computed_without_dropout_and_its_switch_is_put_back(cached, bare):
    bare.train()
    bare.model.vision_tower.eval()
    seen = []

    def look(network: Any, batch: Any) -> PairLogps:
        seen.append(network.training)
        assert not any(module.training for module in network.modules()) and not torch.is_grad_enabled()
        return score(network, batch)

    cached.prepare(bare, lambda: preparation(PAIRS, score=look))
    assert seen == [False] * 5
    assert bare.training and bare.lm_head.training and not bare.model.vision_tower.training


def test_more_pairs_and_changed_ones_are_computed_and_no_others(cached, bare, capsys):
    cached.prepare(bare, lambda: preparation(PAIRS[:7]))
    asked: list[str] = []
    capsys.readouterr()
    changed = [PAIRS[8], PAIRS[0], PAIRS[1]._replace(chosen=[50, 60]), *PAIRS[2:8], PAIRS[9]]  # in another order
    fresh = again(cached)
    fresh.prepare(bare, lambda: preparation(changed, asked))
    assert asked == ["pair-8", "pair-1", "pair-7", "pair-9"]
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("reference: log-probs of 4 of 10 pairs are computed into ")
    assert line.endswith("; 1 of them have changed since (pair-1, …)")
    torch.testing.assert_close(fresh(bare, ["pair-1"], Unasked()), score(bare, batch_of(changed[2:3])))
    asked.clear()
    again(cached).prepare(bare, lambda: preparation(PAIRS[:9], asked))  # what it was before is still there
    assert asked == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dtype": "bfloat16"}, 'dtype ("float32" there, "bfloat16" now)'),
        ({"layout": {"class": "Trie", "version": 3}}, 'layout.class ("Tree" there, "Trie" now)'),
        ({"layout": {"class": "Tree", "version": 4}}, "layout.version (3 there, 4 now)"),
        ({"policy": {"content": "77"}}, 'policy.content ("12" there, "77" now)'),
        ({"image_size": 336}, "image_size (null there, 336 now)"),
    ],
)
def test_the_cache_of_another_recipe_is_named_and_not_used(change, told, cached, bare, capsys):
    recipe = {"dtype": "float32", "layout": {"class": "Tree", "version": 3}, "policy": {"content": "12"}}
    cached.prepare(bare, lambda: preparation(PAIRS[:4], recipe=recipe))
    capsys.readouterr()
    asked: list[str] = []
    again(cached).prepare(bare, lambda: preparation(PAIRS[:4], asked, recipe={**recipe, **change}))
    assert asked == IDS[:4]
    assert (
        capsys.readouterr()
        .err.splitlines()[0]
        .endswith(f"; of 1 other caches there none fits: the nearest differs in {told}")
    )
    again(cached).prepare(bare, lambda: preparation(PAIRS[:4], recipe=recipe, score=Unasked()))


def test_a_recipe_that_cannot_be_read_is_named(cached, bare, capsys):
    cached.prepare(bare, lambda: preparation(PAIRS[:4]))
    next(Path(cached.folder).glob("*/recipe.json")).write_text("{")
    again(cached).prepare(bare, lambda: preparation(PAIRS[:4], recipe={"dtype": "float64"}))
    assert "recipe.json, which cannot be read" in capsys.readouterr().err


def test_a_complete_cache_is_loaded_without_a_word(cached, bare, capsys):
    cached.prepare(bare, lambda: preparation(PAIRS))
    assert "10/10" in capsys.readouterr().err
    again(cached).prepare(bare, lambda: preparation(PAIRS))
    assert capsys.readouterr() == ("", "")


def test_a_flipped_bit_is_one_line_or_changes_nothing(cached, bare):
    cached.prepare(bare, lambda: preparation(PAIRS))
    shard = shards(cached)[1]
    whole, expected, num_refused = shard.read_bytes(), cached(bare, IDS, Unasked()), 0
    for place in range(3, len(whole), 61):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        shard.write_bytes(damaged)
        fresh = again(cached)
        try:
            fresh.prepare(bare, lambda: preparation(PAIRS, score=Unasked()))
        except ValueError as error:
            num_refused += 1
            assert re.fullmatch(r".*/00001-.*\.parquet is damaged \(.*\): delete it and run again", str(error))
        else:
            assert_same(fresh(bare, IDS, Unasked()), expected)
    assert num_refused > len(whole) // 61 // 2


def test_a_damaged_shard_that_was_deleted_is_computed_again(cached, bare):
    cached.prepare(bare, lambda: preparation(PAIRS))
    shards(cached)[1].unlink()
    asked: list[str] = []
    again(cached).prepare(bare, lambda: preparation(PAIRS, asked))
    assert asked == IDS[4:8]


def test_a_shard_under_anothers_name_is_never_used(cached, bare):
    cached.prepare(bare, lambda: preparation(PAIRS))
    shards(cached)[0].replace(shards(cached)[1])
    with pytest.raises(ValueError, match="its rows are not those that were written"):
        again(cached).prepare(bare, lambda: preparation(PAIRS))


def test_an_unknown_pair_is_a_mistake(cached, bare):
    with pytest.raises(ValueError, match=r"no log-probs of pair 'pair-0': it was prepared for 0 pairs"):
        cached(bare, IDS[:2], Unasked())
    cached.prepare(bare, lambda: preparation(PAIRS[:4]))
    with pytest.raises(ValueError, match=r"no log-probs of pair 'pair-4': it was prepared for 4 pairs"):
        cached(bare, IDS[2:6], Unasked())


def test_two_pairs_of_one_id_are_a_mistake(cached, bare):
    with pytest.raises(ValueError, match="two pairs have the id 'pair-0'"):
        cached.prepare(bare, lambda: preparation([*PAIRS, PAIRS[0]]))


def test_a_batch_that_is_not_the_blocks_is_a_mistake(cached, bare):
    with pytest.raises(AssertionError, match="another block"):
        cached.prepare(bare, lambda: preparation(PAIRS, batches=lambda blocks: iter([batch_of(PAIRS[2:6])])))


def test_a_log_prob_that_is_no_number_never_lands(cached, bare):
    def broken(network: Any, batch: Any) -> PairLogps:
        logps = score(network, batch)
        return logps._replace(rejected=logps.rejected / torch.tensor([float("pair-5" != name) for name in batch.ids]))

    with pytest.raises(FloatingPointError, match="no finite numbers at pairs pair-5:"):
        cached.prepare(bare, lambda: preparation(PAIRS, score=broken))
    assert [path.name[:5] for path in shards(cached)] == ["00000"]


def test_a_run_that_goes_on_takes_no_values_of_trained_weights(cached, bare, make_policy):
    with pytest.raises(ValueError, match="goes on with weights that have been trained"):
        cached.prepare(bare, lambda: preparation(PAIRS, resumed=True))
    cached.prepare(bare, lambda: preparation(PAIRS))
    again(cached).prepare(bare, lambda: preparation(PAIRS, resumed=True, score=Unasked()))
    policy = make_policy()  # with its adapters off it is what it was
    again(cached).prepare(policy, lambda: preparation(PAIRS, resumed=True, recipe={"dtype": "its own"}))


def test_weights_that_are_spread_over_ranks_read_a_cache_and_make_none(cached, frozen):
    with pytest.raises(ValueError, match="AdaptersOff, or make them in a run with strategy ddp first"):
        cached.prepare(frozen, lambda: preparation(PAIRS, sharded=True))
    cached.prepare(frozen, lambda: preparation(PAIRS))
    again(cached).prepare(frozen, lambda: preparation(PAIRS, sharded=True, score=Unasked()))


def test_a_shard_holds_a_pair_at_least():
    with pytest.raises(ValueError, match="shard_size must be >= 1, got 0"):
        Cached(shard_size=0)


# ---- in processes of their own


def asked_by(folder: Path, rank: int = 0) -> list[str]:
    path = folder / f"asked-{rank}.txt"
    return path.read_text().split() if path.exists() else []


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("cache/*/*.parquet")}


@pytest.fixture(scope="module")
def undisturbed(tiny_llava, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start_rank(tiny_llava, folder, 18)
    process.join()
    assert process.exitcode == 0 and len(asked_by(folder)) == 18
    return folder


@pytest.mark.parametrize("dies_after", [0, 6, 8])
def test_a_killed_preparation_goes_on_and_computes_no_landed_value_twice(dies_after, undisturbed, tiny_llava, tmp_path):
    first = start_rank(tiny_llava, tmp_path, 18, dies_after=dies_after)
    first.join()
    assert first.exitcode == -signal.SIGKILL
    landed = dies_after // 4 * 4
    assert len(content(tmp_path)) == landed // 4 and len(asked_by(tmp_path)) == dies_after
    second = start_rank(tiny_llava, tmp_path, 18)
    second.join()
    assert second.exitcode == 0
    assert asked_by(tmp_path)[dies_after:] == [pair.id for pair in speak(18)[landed:]]
    assert content(tmp_path) == content(undisturbed)


def test_two_ranks_share_the_work_and_end_with_the_same_bytes(undisturbed, tiny_llava, tmp_path):
    ranks = [start_rank(tiny_llava, tmp_path, 18, rank=rank, world_size=2) for rank in (0, 1)]
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    ids = [pair.id for pair in speak(18)]
    assert asked_by(tmp_path, 0) == [*ids[0:4], *ids[8:12], *ids[16:18]]
    assert asked_by(tmp_path, 1) == [*ids[4:8], *ids[12:16]]
    assert content(tmp_path) == content(undisturbed)


def test_the_shards_of_a_rank_that_was_killed_are_left_to_the_next_run(undisturbed, tiny_llava, tmp_path):
    victim = start_rank(tiny_llava, tmp_path, 18, rank=1, world_size=2, dies_after=4)
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    alone = start_rank(tiny_llava, tmp_path, 18)
    alone.join()
    assert alone.exitcode == 0
    ids = [pair.id for pair in speak(18)]
    assert asked_by(tmp_path, 0) == ids[:4] + ids[8:]
    assert content(tmp_path) == content(undisturbed)


# ---- chosen in a config


def test_a_reference_is_chosen_by_class_path():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reference", type=Reference | None)
    for name, kind in {"AdaptersOff": AdaptersOff, "FrozenCopy": FrozenCopy, "Cached": Cached}.items():
        config = parser.parse_object({"reference": {"class_path": f"synthalign.dpo.reference.{name}"}})
        assert type(parser.instantiate(config).reference) is kind
    settings = {"class_path": "synthalign.dpo.reference.Cached", "init_args": {"folder": "there", "shard_size": 9}}
    made = parser.instantiate(parser.parse_object({"reference": settings})).reference
    assert (made.folder, made.shard_size) == ("there", 9)
