"""The pairs of a plan are those that the run's ranks will take."""

import shutil

import pytest
from dpo.drawn_pairs import TEN, write_set

from synthalign.datamodules import SyntheticPreferenceDataModule
from synthalign.planning.batches import Lengths, tokens_of
from synthalign.planning.pairs import assumed, of_run
from synthalign.vlm import Chat

FIT = 8  # of the ten


@pytest.fixture
def data_of(tmp_path, tiny_llava):
    pairs = write_set(tmp_path, TEN)

    def make(**settings):
        return SyntheticPreferenceDataModule(pairs=str(pairs), chat=Chat(model=str(tiny_llava)), **settings)

    return make


def existing(data, world_size):
    found = of_run(data, world_size)
    assert found is not None
    return found


def made_up(data, folder, num_pairs, world_size):
    from transformers import AutoConfig

    lengths = Lengths(question=30, chosen=20, rejected=10)
    config = AutoConfig.from_pretrained(folder)
    return assumed(data, config, lengths, num_pairs=num_pairs, image_size=28, world_size=world_size)


def test_ranks_that_take_pairs_by_number_leave_some_out(data_of):
    found = existing(data_of(batch_size=3), 2)  # batches of 3, 3 and 2
    assert found.num_batches == 1 and found.num_pairs in (5, 6)
    with pytest.raises(ValueError, match="8 pairs are too few for 4 processes with a batch_size of 3"):
        existing(data_of(batch_size=3), 4)


def test_ranks_that_fill_batches_take_all_pairs_in_smaller_ones(data_of):
    alone, together = (existing(data_of(max_tokens=10_000), size) for size in (1, 4))
    assert (alone.num_pairs, together.num_pairs) == (FIT, FIT)
    assert (alone.num_batches, together.num_batches) == (1, 1)
    assert len(together.largest.batch) < len(alone.largest.batch) == FIT


def test_the_longest_pair_by_itself_has_its_image_alone(data_of):
    found = existing(data_of(batch_size=FIT), 1)
    assert found.longest.batch.images["pixel_values"].shape[0] == len(found.longest.batch) == 1
    alone = [existing(data_of(batch_size=1), 1).largest]
    assert found.longest.tokens == alone[0].tokens == tokens_of(found.longest.batch)


@pytest.mark.parametrize(("settings", "batches", "pairs"), [({"batch_size": 3}, 1, 6), ({"max_tokens": 100}, 4, 8)])
def test_made_up_pairs_are_shared_out_as_real_ones(data_of, tiny_llava, settings, batches, pairs):
    found = made_up(data_of(**settings), tiny_llava, 8, 2)  # two of 64 or so tokens do not go into 100
    assert (found.num_batches, found.num_pairs) == (batches, pairs)
    with pytest.raises(ValueError, match="1 pairs are too few for 2 devices"):
        made_up(data_of(**settings), tiny_llava, 1, 2)


def test_a_policy_without_its_processor_is_said_to_be(tmp_path, tiny_llava):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny_llava / "config.json", bare)
    data = SyntheticPreferenceDataModule(pairs="none.json", chat=Chat(model=str(bare)))
    found = made_up(data, bare, 8, 1)
    assert "reckoned without the policy's processor: " in found.source
    # four patches, and the lengths
    assert found.longest.tokens == 4 + 30 + 20 + 10
