"""What is trained on: read or made, gated, cut to the model's length, split by image; every drop counted and named."""

import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dpo.drawn_pairs import EMPTY, FOREIGN, TEN, Pair, draw, write_set
from dpo.parts import ASKED, Brevity, Counting, Painter, Width
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from transformers import AutoProcessor

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
        for name in ("id", "question", "chosen", "rejected"):
            assert getattr(here, name) == getattr(there, name)
        assert here.image.tobytes() == there.image.tobytes()
    assert [row_id for row_id, _ in module.dropped] == [EMPTY, FOREIGN]


def test_a_pair_longer_than_the_limit_is_dropped_and_counted(tmp_path, chat, capsys):
    path = write_set(tmp_path / "set")
    every = existing(path, chat)
    longest = max(every.train_set.lengths)
    lengths = zip(ids(every.train_set), every.train_set.lengths, strict=True)
    too_long = [row_id for row_id, length in lengths if length == longest]
    batch = next(iter(existing(path, chat, batch_size=8).train_dataloader()))
    prompts = [len(prompt["input_ids"]) for prompt in batch.prompts]  # image tokens too
    responses = [max(len(one), len(other)) for one, other in zip(batch.chosen, batch.rejected, strict=True)]
    assert max(p + r for p, r in zip(prompts, responses, strict=True)) == longest
    capsys.readouterr()
    assert len(existing(path, chat, max_length=longest).train_set) == 8
    shorter = existing(path, chat, max_length=longest - 1)
    assert [row_id for row_id, drop in shorter.dropped if drop.reason == "too_long"] == too_long
    assert len(shorter.train_set) == 8 - len(too_long) < 8
    assert f"{too_long[0]}: too_long ({longest} tokens, the limit is {longest - 1})" in capsys.readouterr().err


def test_without_a_limit_the_models_own_holds(tmp_path, chat):
    """The tiny model has 512 positions; a letter outside its merges is one token."""
    wordy = [TEN[0], Pair("wordy", TEN[1].drawing, "What?", "z" * 500, "No."), TEN[2]]
    module = existing(write_set(tmp_path / "set", wordy), chat, response_gates=[])
    assert [(row_id, drop.reason) for row_id, drop in module.dropped] == [("wordy", "too_long")]


def test_nothing_is_cut_from_a_pair_that_fits(tmp_path, tiny_llava):
    """Not even where the tokenizer names a length: a prompt cut short would lose tokens of its image."""
    every = many(6, 2)
    short = Chat(model=str(tiny_llava))
    short.tokenizer.model_max_length = 3
    processor = AutoProcessor.from_pretrained(tiny_llava)
    images = {}
    for pair in every:
        given = processor(images=[draw(pair.drawing)], text="<image>")["input_ids"][0]
        images[pair.id] = given.count(processor.image_token_id)
    seen = 0
    for shares_images in (False, True):
        module = existing(write_set(tmp_path / f"{shares_images}", every), short, shares_images=shares_images)
        for batch in module.train_dataloader():
            for row, pair_id in enumerate(batch.ids):
                pair = next(pair for pair in every if pair.id == pair_id)
                prompt = batch.prompts[row]["input_ids"]
                assert int((prompt == processor.image_token_id).sum()) == images[pair_id] > 3
                assert pair.question in processor.tokenizer.decode(prompt)
                assert processor.tokenizer.decode(batch.chosen[row]) == f" {pair.chosen}</s>"
                assert processor.tokenizer.decode(batch.rejected[row]) == f" {pair.rejected}</s>"
                seen += 1
    assert seen == 24


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
    assert ASKED == dict.fromkeys(["generate", "respond"], len(first.synthesis.stages[0].shards))  # a call each
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


def cost(batch, processor, shares_images):
    """Count a batch's tokens as they came, but those of an image that is shared once."""
    responses = sum(len(response) for response in (*batch.chosen, *batch.rejected))
    images = {}
    total = 0
    for prompt, image in zip(batch.prompts, batch.image_of, strict=True):
        of_image = int((prompt["input_ids"] == processor.image_token_id).sum())
        total += len(prompt["input_ids"]) - (of_image if shares_images else 0)
        images[image] = of_image if shares_images else 0
    return responses + total + sum(images.values())


@pytest.mark.parametrize("shares_images", [False, True])
def test_batches_are_filled_by_tokens(shares_images, tmp_path, chat):
    settings = {"max_tokens": 250, "shares_images": shares_images, "val_share": 0.3}
    module = existing(write_set(tmp_path / "set", many(20, 3)), chat, **settings)
    for loader, dataset in (
        (module.train_dataloader(), module.train_set),
        (module.val_dataloader(), module.val_set),
        (module.reference_batches([module.train_set.ids]), module.train_set),
    ):
        batches = list(loader)
        assert sorted(row_id for batch in batches for row_id in batch.ids) == sorted(dataset.ids)
        costs = [cost(batch, chat.processor, shares_images) for batch in batches]
        assert max(costs) <= 250 and len(batches) < len(dataset)
        if shares_images:  # no image is in two batches
            assert sum(len(batch.image_ids) for batch in batches) == len({i.split("-")[0] for i in dataset.ids})


def test_pairs_of_an_image_share_a_batch_of_so_many_pairs(tmp_path, chat):
    module = existing(write_set(tmp_path / "set", many(9, 3)), chat, batch_size=4, shares_images=True)
    for batch in module.train_dataloader():
        assert len(batch) == 3 and len(batch.image_ids) == 1


def test_a_run_goes_on_inside_an_epoch_of_filled_batches(tmp_path, chat):
    path = write_set(tmp_path / "set", many(10, 2))
    module = existing(path, chat, max_tokens=200)
    stream = iter(module.train_dataloader())
    next(stream), next(stream)
    state = module.state_dict()
    assert (state["epoch"], state["given"]) == (0, 2)
    again = existing(path, chat, max_tokens=200)
    again.load_state_dict(state)
    rest = [batch.ids for batch in stream]
    assert [batch.ids for batch in again.train_dataloader()] == rest and len(rest) > 2


@pytest.mark.parametrize("change", ["a seed", "a limit", "a held-out share", "a text"])
def test_a_run_does_not_go_on_within_an_epoch_of_other_batches(change, tmp_path, chat, capsys):
    path = write_set(tmp_path / "set", many(10, 2))
    module = existing(path, chat, max_tokens=200)
    next(iter(module.train_dataloader()))
    state = module.state_dict()
    if change == "a text":
        text = path.read_text()
        word = json.loads(text)[0]["conversations"][1]["value"].split()[-1]
        path.write_text(text.replace(word, word[::-1], 1))
    settings: dict[str, dict[str, Any]] = {
        "a seed": {"seed": 1},
        "a limit": {"max_tokens": 210},
        "a held-out share": {"val_share": 0.2},
    }
    other = existing(path, chat, **{"max_tokens": 200, **settings.get(change, {})})
    with pytest.raises(ValueError, match=r"^it was saved within an epoch of other batches: go on with the pairs"):
        other.load_state_dict(state)
    capsys.readouterr()
    other.load_state_dict(state | {"within": False})
    assert (
        capsys.readouterr().err == "synthalign: the checkpoint is from the end of an epoch of other pairs or batches\n"
    )


@pytest.mark.parametrize("damage", [{"given": "x"}, {"epoch": None}, {"given": -1}, {"order": 3}, {"within": 1}])
def test_a_damaged_place_in_the_data_is_refused(damage: dict[str, Any], tmp_path, chat):
    module = existing(write_set(tmp_path / "set"), chat)
    module.train_dataloader()
    with pytest.raises(ValueError, match=r"^its place in the data is damaged$"):
        module.load_state_dict(module.state_dict() | damage)


def test_fewer_pairs_than_processes_are_refused_with_a_budget_too(tmp_path, chat):
    module = SyntheticPreferenceDataModule(pairs=str(write_set(tmp_path / "set")), chat=chat, max_tokens=1000)
    module.trainer = Trainer(devices=9, strategy="ddp", accelerator="cpu", logger=False, enable_checkpointing=False)
    module.setup("fit")
    with pytest.raises(ValueError, match=r"8 pairs are too few for 9 processes: .*lower the number of processes"):
        module.train_dataloader()


def test_reference_batches_are_of_the_pairs_asked_for_held_out_or_not(tmp_path, chat):
    module = existing(write_set(tmp_path / "set"), chat, batch_size=2, val_share=0.5)
    asked = [*module.val_set.ids[:2], *module.train_set.ids[-3:]]
    batches = list(module.reference_batches([asked]))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert sorted(row_id for batch in batches for row_id in batch.ids) == sorted(asked)
    tokens = [
        len(batch.prompts[row]["input_ids"]) + len(batch.chosen[row]) + len(batch.rejected[row])
        for batch in batches
        for row in range(len(batch))
    ]
    assert tokens[0] == max(tokens)
    assert list(module.reference_batches([])) == []
    with pytest.raises(KeyError, match="unheard of"):
        module.reference_batches([["unheard of"]])


def test_a_fingerprint_names_the_whole_set_in_order_and_not_how_it_is_split(tmp_path, chat):
    path = write_set(tmp_path / "set")
    names = existing(path, chat).fingerprints()
    assert [row_id for row_id, _ in names] == [pair.id for pair in TEN if pair.id not in (EMPTY, FOREIGN)]
    assert len({name for _, name in names}) == 8
    assert existing(path, chat, val_share=0.5, seed=4, max_tokens=100).fingerprints() == names


CHANGES = {
    "question": lambda pair: pair._replace(question="What else?"),
    "chosen": lambda pair: pair._replace(chosen="It is red indeed."),
    "rejected": lambda pair: pair._replace(rejected="It is green."),
    "image": lambda pair: pair._replace(drawing="red square on white"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_fingerprint_changes_with_what_the_log_probs_depend_on(change, tmp_path, chat):
    before = dict(existing(write_set(tmp_path / "before"), chat).fingerprints())
    after = dict(existing(write_set(tmp_path / "after", [CHANGES[change](TEN[0]), *TEN[1:]]), chat).fingerprints())
    assert {row_id for row_id in before if before[row_id] != after[row_id]} == {TEN[0].id}


def test_a_fingerprint_changes_with_an_images_content_and_the_prompts_template(tmp_path, chat, tiny_llava):
    path = write_set(tmp_path / "set")
    before = dict(existing(path, chat).fingerprints())
    other = Chat(model=str(tiny_llava), chat_template=chat.processor.chat_template.replace("ASSISTANT:", "BOT:"))
    assert not set(before.values()) & set(dict(existing(path, other).fingerprints()).values())
    draw("blue circle on black").save(path.parent / "images" / f"{TEN[0].drawing.replace(' ', '-')}.png")
    after = dict(existing(path, chat).fingerprints())
    assert {row_id for row_id in before if before[row_id] != after[row_id]} == {TEN[0].id}


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
        torch.testing.assert_close(one.prompts, other.prompts, rtol=0, atol=0)
        torch.testing.assert_close(one.chosen, other.chosen, rtol=0, atol=0)
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
        ({"max_tokens": 0}, "max_tokens must be >= 1, or null .* got 0"),
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


def test_no_reference_batch_crosses_from_one_block_into_the_next(tmp_path, chat):
    module = existing(write_set(tmp_path / "set"), chat, batch_size=3)
    blocks = [module.train_set.ids[:4], module.train_set.ids[4:]]
    batches = list(module.reference_batches(blocks))
    assert [len(batch) for batch in batches] == [3, 1, 3, 1]
    for block, share in zip(blocks, (batches[:2], batches[2:]), strict=True):
        assert sorted(row_id for batch in share for row_id in batch.ids) == sorted(block)
