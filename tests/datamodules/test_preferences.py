"""What is trained on: read or made, gated, cut to the model's length, split by image; every drop counted and named."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dpo.drawn_pairs import EMPTY, FOREIGN, TEN, Pair, draw, write_set
from dpo.parts import ASKED, Brevity, Counting, Painter, Width
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback

from synthalign.datamodules import SyntheticPreferenceDataModule
from synthalign.dpo.losses import DPO
from synthalign.dpo.policy import LoRA
from synthalign.modules import DPOModule
from synthalign.pairs import Empty
from synthalign.pipeline import Synthesis
from synthalign.tables import PAIRS
from synthalign.vlm import Chat

QUESTION = "How many?"


@pytest.fixture(scope="module")
def chat(tiny_llava):
    return Chat(model=str(tiny_llava))


@pytest.fixture
def made(tmp_path, chat):
    """Give a datamodule whose pairs are to be made from eight prompts."""

    def make(**settings):
        rows = [{"id": f"p{n}", "prompt": TEN[n].drawing, "question": QUESTION} for n in range(8)]
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        synthesis = Synthesis(
            prompts=str(prompts),
            store=str(tmp_path / "store"),
            generator=Painter(),
            image_reward=Width(),
            responders=[Counting()],
            response_reward=Brevity(),
            num_images=2,
            num_samples=3,
            shard_size=3,
            response_gates=[Empty()],
        )
        return SyntheticPreferenceDataModule(synthesis=synthesis, chat=chat, **settings)

    return make


def existing(path, chat, **settings):
    """Set up a datamodule on a set that exists."""
    module = SyntheticPreferenceDataModule(pairs=str(path), chat=chat, **settings)
    module.setup("fit")
    return module


def ids(dataset):
    return [dataset[i].id for i in range(len(dataset))]


def test_the_authors_set_is_read_and_its_faults_are_dropped_counted_and_named(tmp_path, chat, capsys):
    module = existing(write_set(tmp_path / "set"), chat)
    assert ids(module.train_set) == [pair.id for pair in TEN if pair.id not in (EMPTY, FOREIGN)]
    assert {row_id: drop.reason for row_id, drop in module.dropped} == {EMPTY: "empty", FOREIGN: "foreign_script"}
    first, *named = capsys.readouterr().err.splitlines()
    assert first == "8 pairs; dropped 2 (empty 1, foreign_script 1)"
    assert [line.split(":")[0].strip() for line in named] == [EMPTY, FOREIGN]
    assert "rejected" in named[0] and "这是" in named[1]


def test_pairs_carry_their_own_image_question_and_answers(tmp_path, chat):
    module = existing(write_set(tmp_path / "set"), chat)
    by_id = {pair.id: pair for pair in TEN}
    for row in range(len(module.train_set)):
        got = module.train_set[row]
        meant = by_id[got.id]
        assert got.question == meant.question
        assert got.image.tobytes() == draw(meant.drawing).tobytes()
        assert chat.tokenizer.decode(got.chosen) == f" {meant.chosen}</s>"
        assert chat.tokenizer.decode(got.rejected) == f" {meant.rejected}</s>"


def trl_rows(folder):
    """The same pairs as TRL has them, in conversations, images by path."""
    write_set(folder / "set")
    rows = [
        {
            "id": pair.id,
            "images": [f"set/images/{pair.drawing.replace(' ', '-')}.png"],
            "prompt": [{"role": "user", "content": pair.question}],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in TEN
    ]
    (folder / "trl.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "trl.jsonl"


def landing(folder):
    """The same pairs as our own pipeline leaves them, the two faulty ones dropped by it."""
    rows = []
    for pair in TEN:
        path = folder / "drawing.png"
        folder.mkdir(exist_ok=True)
        draw(pair.drawing).save(path)
        row = {"id": pair.id, "image_id": pair.drawing, "prompt": pair.drawing, "question": pair.question}
        if pair.id in (EMPTY, FOREIGN):
            rows.append({**row, "dropped": "one_left", "detail": "of two"})
            continue
        answers = {"chosen": pair.chosen, "rejected": pair.rejected, "chosen_score": 2.0, "rejected_score": 1.0}
        rows.append({**row, **answers, "image": {"bytes": path.read_bytes(), "path": None}})
    (folder / "table").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), folder / "table" / "00000.parquet")
    return folder / "table"


@pytest.mark.parametrize("write", [trl_rows, landing])
def test_other_formats_give_the_same_pairs(write, tmp_path, chat):
    module = existing(write(tmp_path / "other") if write is landing else write(tmp_path), chat)
    authors = existing(write_set(tmp_path / "authors"), chat)
    assert len(module.train_set) == len(authors.train_set) == 8
    for row in range(8):
        here, there = module.train_set[row], authors.train_set[row]
        assert (here.id, here.question, here.chosen, here.rejected) == there[:1] + there[2:]
        assert here.image.tobytes() == there.image.tobytes()
    assert [row_id for row_id, _ in module.dropped] == [EMPTY, FOREIGN]


def test_a_pair_longer_than_the_limit_is_dropped_and_counted(tmp_path, chat, capsys):
    path = write_set(tmp_path / "set")
    every = existing(path, chat)
    longest = max(every.train_set.lengths)
    lengths = zip(ids(every.train_set), every.train_set.lengths, strict=True)
    too_long = [row_id for row_id, length in lengths if length == longest]
    batch = next(iter(existing(path, chat, batch_size=8).train_dataloader()))
    assert max(rows.response_mask.shape[1] for rows in (batch.chosen, batch.rejected)) == longest  # image tokens too
    capsys.readouterr()
    assert len(existing(path, chat, max_length=longest).train_set) == 8
    shorter = existing(path, chat, max_length=longest - 1)
    assert [row_id for row_id, drop in shorter.dropped if drop.reason == "too_long"] == too_long
    assert len(shorter.train_set) == 8 - len(too_long) < 8
    assert f"{too_long[0]}: too_long ({longest} tokens, the limit is {longest - 1})" in capsys.readouterr().err


def test_without_a_limit_the_models_own_holds(tmp_path, chat):
    """The tiny model has 512 positions; a letter outside its merges is one token."""
    wordy = [TEN[0], Pair("wordy", TEN[1].drawing, "What?", "z" * 500, "No."), TEN[2]]
    module = existing(write_set(tmp_path / "set", wordy), chat)
    assert [(row_id, drop.reason) for row_id, drop in module.dropped] == [("wordy", "too_long")]


def test_an_answer_with_an_image_token_is_dropped_before_it_breaks_a_step(tmp_path, chat):
    odd = [TEN[0], Pair("odd", TEN[1].drawing, "What?", "An <image> of it.", "No.")]
    module = existing(write_set(tmp_path / "set", odd), chat)
    assert [(row_id, drop.reason) for row_id, drop in module.dropped] == [("odd", "image_token")]


def many(num_images, per_image):
    """Pairs of which several share an image."""
    colours = ["red", "green", "blue", "white", "black", "grey", "yellow", "purple", "orange", "brown"]
    drawings = [f"{a} {shape} on {b}" for shape in ("circle", "square") for a in colours for b in colours if a != b]
    return [
        Pair(f"i{image}-{k}", drawings[image], f"What is it? {k}", "A thing.", "No thing at all.")
        for image in range(num_images)
        for k in range(per_image)
    ]


def test_the_split_is_by_image_and_seeded(tmp_path, chat):
    path = write_set(tmp_path / "set", many(60, 2))

    def split(seed):
        module = existing(path, chat, val_share=0.3, seed=seed)
        return set(ids(module.train_set)), set(ids(module.val_set))

    train, held = split(0)
    assert len(train) + len(held) == 120 and not train & held
    images = [{row_id.split("-")[0] for row_id in side} for side in (train, held)]
    assert not images[0] & images[1]
    assert 9 <= len(images[1]) <= 27  # 18 expected of 60; standard deviation 3.5
    assert split(0) == (train, held)
    assert split(1) != (train, held)


def test_nothing_is_held_out_unless_asked_for(tmp_path, chat):
    module = existing(write_set(tmp_path / "set"), chat)
    assert len(module.val_set) == 0 and module.val_dataloader() == []


def test_yes_and_no_are_balanced_after_everything_unfit_is_gone(tmp_path, chat):
    said = ["Yes.", "Yes, it is.", "Yes, there is.", "No.", "A cup."]
    pairs = [Pair(f"p{n}", TEN[n].drawing, "Is it?", answer, "I cannot say.") for n, answer in enumerate(said)]
    pairs.append(Pair("void", TEN[6].drawing, "Is it?", "No, never.", " "))
    module = existing(write_set(tmp_path / "set", pairs), chat, balance_yes_no=True)
    kept = [pair.chosen.split()[0].strip(".,") for pair in pairs if pair.id in ids(module.train_set)]
    assert Counter(kept) == {"Yes": 1, "No": 1, "A": 1}
    assert Counter(drop.reason for _, drop in module.dropped) == {"surplus": 2, "empty": 1}


def test_fit_makes_the_pairs_and_a_second_fit_makes_nothing(made):
    ASKED.clear()
    first = made()
    first.setup("fit")
    assert ASKED == {"generate": 3, "respond": 3}  # one call a shard: 8 prompts in shards of 3
    assert len(first.train_set) > 4
    ASKED.clear()
    again = made()
    again.setup("fit")
    assert not ASKED
    assert ids(again.train_set) == ids(first.train_set)


def test_making_pairs_leaves_the_random_state_alone(made):
    """So that the fresh adapter is the same, whether the pairs were there already or not."""
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    made().setup("fit")
    assert torch.equal(torch.rand(1), expected)


def test_test_and_validate_never_make_anything(made, tmp_path):
    ASKED.clear()
    made().setup("test")
    with pytest.raises(ValueError, match=r"the pairs are not made yet .*run `synthalign synthesize` first"):
        made().setup("validate")
    assert not ASKED and not (tmp_path / "store").exists()


def test_validate_reads_what_was_made(made):
    first = made(val_share=0.5)
    first.setup("fit")
    assert len(first.val_set) > 0
    again = made(val_share=0.5)
    again.setup("validate")
    assert ids(again.val_set) == ids(first.val_set)


def test_too_few_pairs_for_the_processes_are_refused(tmp_path, chat):
    module = SyntheticPreferenceDataModule(pairs=str(write_set(tmp_path / "set")), chat=chat, batch_size=4)
    module.trainer = Trainer(devices=3, strategy="ddp", accelerator="cpu", logger=False, enable_checkpointing=False)
    module.setup("fit")
    with pytest.raises(ValueError, match=r"8 pairs are too few for 3 processes with a batch_size of 4: .*lower"):
        module.train_dataloader()


def test_validation_opens_its_hooks_even_where_nothing_is_held_out(tmp_path, tiny_llava, capsys):
    policy = DPOModule(policy=str(tiny_llava), loss=DPO(), lora=LoRA(r=2))
    module = SyntheticPreferenceDataModule(pairs=str(write_set(tmp_path / "set")), chat=policy.chat)
    opened = []
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[LambdaCallback(on_validation_epoch_end=lambda *args: opened.append(args))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    assert trainer.validate(policy, module, verbose=False) == [{}]
    assert len(opened) == 1
    assert "0 held out for validation" in capsys.readouterr().err


def test_worker_processes_prepare_the_same_batches(tmp_path, chat):
    path = write_set(tmp_path / "set")
    here, there = (list(existing(path, chat, num_workers=n).train_dataloader()) for n in (0, 1))
    assert [batch.ids for batch in here] == [batch.ids for batch in there]
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one.chosen.inputs, other.chosen.inputs, rtol=0, atol=0)
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=0)


def test_nothing_left_to_train_on_is_an_error_with_the_reasons(tmp_path, chat):
    unfit = [pair for pair in TEN if pair.id in (EMPTY, FOREIGN)]
    module = SyntheticPreferenceDataModule(pairs=str(write_set(tmp_path / "set", unfit)), chat=chat)
    with pytest.raises(ValueError, match=r"no pair is left to train on: .*empty 1, foreign_script 1"):
        module.setup("fit")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"val_share": 1.0}, r"val_share must be in \[0, 1\) .*got 1\.0"),
        ({"batch_size": 0}, "batch_size >= 1, got .* 0"),
        ({"max_length": 0}, "max_length must be >= 1, or null"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SyntheticPreferenceDataModule(pairs="pairs.json", **settings)


def test_a_set_is_made_or_read_but_not_both(made, chat):
    with pytest.raises(ValueError, match="give synthesis or pairs, not both"):
        made(pairs="pairs.json")
    with pytest.raises(ValueError, match="nothing to train on: give the datamodule synthesis or pairs"):
        SyntheticPreferenceDataModule(chat=chat).setup("fit")
    with pytest.raises(ValueError, match="nothing to synthesize"):
        SyntheticPreferenceDataModule(pairs="pairs.json", chat=chat).synthesize()


def test_without_a_chat_it_says_where_to_get_one(tmp_path):
    module = SyntheticPreferenceDataModule(pairs=str(write_set(tmp_path / "set")))
    with pytest.raises(ValueError, match=r"chat=module\.chat"):
        module.setup("fit")
