"""Questions and pictures arrive whole, from wherever their parts landed."""

import json
import shutil

import pytest
from landed import Store, drawn, paired

from synthalign.pages.joined import Joined
from synthalign.pages.landings import find
from synthalign.store import Shard


@pytest.fixture
def join(tmp_path):
    opened: list[Joined] = []

    def joined(run, left_out=None):
        folder = tmp_path / f"work-{len(opened)}"
        folder.mkdir()
        opened.append(Joined(find(run), folder, left_out))
        return opened[-1]

    yield joined
    for one in opened:
        one.close()


def test_a_question_holds_its_candidates_and_says_which_became_the_pair(tmp_path, join):
    store = Store(tmp_path / "store")
    store.land([0], chosen="Yes.", rejected="No.")
    [question] = join(store.table()).questions()
    assert [one["text"] for one in question.candidates] == ["Yes.", "No.", "Something between.", ""]
    assert (question.chosen, question.rejected, question.margin) == (0, 1, 2.5)
    assert question.candidates[3]["refused"] == "empty" and question.dropped is None and question.pending is None


def test_a_dropped_question_keeps_its_reason(tmp_path, join):
    store = Store(tmp_path / "store")
    store.land([4], dropped="too_close")
    [question] = join(store.table()).questions()
    assert (question.dropped, question.detail, question.chosen, question.margin) == (
        "too_close",
        "because of 4",
        None,
        None,
    )


def test_a_picture_holds_all_its_candidates_with_their_scores(tmp_path, join):
    store = Store(tmp_path / "store")
    store.land([0, 1])
    store.land([2, 3])
    joined = join(store.table())
    numbers = {question.picture: question.id for question in joined.questions()}
    assert sorted(numbers) == [0, 1, 2, 3] and joined.num_pictures == 4
    assert len(joined.sample(3)) == 3
    for picture in joined.pictures():
        n = int(numbers.pop(picture.number)[8:12])
        assert picture.best == 1
        assert [one["score"] for one in picture.candidates] == [1.0, 2.0 + n, None]
        assert [one["image"] for one in picture.candidates] == [one["image"] for one in drawn(n)["candidates"]]
        assert [one["guidance_scale"] for one in picture.candidates] == [5.0, 7.0, 9.0]
    assert not numbers


def test_only_the_pictures_of_the_table_are_given(tmp_path, join):
    store = Store(tmp_path / "store")
    store.land([0])
    table = store.table()
    store.land([1])
    joined = join(table)
    assert [question.id for question in joined.questions()] == ["kitchen-0000/0"]
    assert len(list(joined.pictures())) == 1


@pytest.mark.parametrize("gone", [("draw",), ("draw", "rank", "pick")])
def test_where_the_drawn_images_are_gone_the_best_is_shown(tmp_path, join, gone):
    store = Store(tmp_path / "store")
    store.land([3])
    table = store.table()
    for stage in gone:
        shutil.rmtree(store.landings[stage].folder)
    joined = join(table)
    list(joined.questions())
    [picture] = joined.pictures()
    [candidate] = picture.candidates
    assert candidate["image"] == drawn(3)["candidates"][1]["image"]
    assert candidate["score"] == (5.0 if gone == ("draw",) else None)


def test_an_unfinished_run_gives_each_row_as_far_as_it_came(tmp_path, join):
    store = Store(tmp_path / "store")
    store.land([0])
    store.land([1], ["draw", "rank", "pick", "answer", "score"])
    store.land([2], ["draw", "rank", "pick", "answer"])
    store.land([3], ["draw"])
    joined = join(tmp_path / "store")
    questions = {question.id: question for question in joined.questions()}
    assert {name: one.pending for name, one in questions.items()} == {
        "kitchen-0000/0": None,
        "kitchen-0001/0": "not paired yet",
        "kitchen-0002/0": "not scored yet",
        "kitchen-0003": "not answered yet",
    }
    assert [one["score"] for one in questions["kitchen-0001/0"].candidates] == [2.0, -1.0]
    assert questions["kitchen-0002/0"].candidates[1]["truncated"]
    assert questions["kitchen-0002/0"].prompt == "A kitchen, number 2"
    assert sorted(picture.number for picture in joined.pictures()) == [0, 1, 2, 3]


def test_a_prompt_named_as_anothers_question_hides_no_question(tmp_path, join):
    store = Store(tmp_path / "store")
    rows = [paired(0) | {"id": "a/0/0", "image_id": "a/0"}, paired(1) | {"id": "a/0", "image_id": "a"}]
    store.landings["pair"].write(Shard(0, "h", "0" * 16, ()), rows)
    store.names.append(f"h-{'0' * 16}.parquet")
    assert [question.id for question in join(store.table()).questions()] == ["a/0/0", "a/0"]


def test_pairs_that_training_left_out_say_why(tmp_path, join):
    store = Store(tmp_path / "store")
    store.land([0, 1])
    left_out = tmp_path / "dropped.jsonl"
    left_out.write_text(json.dumps({"id": "kitchen-0001/0", "reason": "too_long", "detail": "900 tokens"}) + "\n")
    first, second = join(store.table(), left_out).questions()
    assert first.dropped is None
    assert (second.dropped, second.detail, second.chosen) == ("too_long", "900 tokens", 0)


def test_a_line_that_says_of_no_pair_that_it_was_left_out_is_named(tmp_path, join):
    store = Store(tmp_path / "store")
    store.land([0])
    left_out = tmp_path / "dropped.jsonl"
    left_out.write_text('{"id": "a", "reason": "b", "detail": "c"}\n{"id"\n')
    with pytest.raises(ValueError, match=r"dropped\.jsonl, line 2: no pair that a training run left out"):
        join(store.table(), left_out)
