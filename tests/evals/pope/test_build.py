import json
from collections import Counter

import pytest

from synthalign.evals.pope import POPE
from synthalign.evals.pope.build import build, write

# Counts: cup 4, dog 3, cat 2, owl 1, ant 1. Beside dog: cup 3, owl 1; beside cat: cup 1, ant 1; beside cup: dog 3.
OBJECTS = {
    "1.jpg": ["dog", "cup"],
    "2.jpg": ["cat", "ant"],
    "3.jpg": ["dog", "cup", "owl"],
    "4.jpg": ["cup", "dog"],
    "5.jpg": ["cat", "cup"],
    "6.jpg": ["dog"],  # too few
}


def things(rows, image):
    """The objects asked about in an image, present and absent in turn."""
    return [row["text"].removesuffix(" in the image?").split(" ")[3] for row in rows if row["image"] == image]


def built(objects=OBJECTS, **settings):
    return build(objects, **{"num_images": 5, "per_image": 2, **settings})


def test_each_present_object_in_the_listed_order_is_followed_by_an_absent_one():
    for rows in built().values():
        assert len(rows) == 5 * 2 * 2
        assert [row["question_id"] for row in rows] == list(range(1, 21))
        assert [row["label"] for row in rows] == ["yes", "no"] * 10
        for image in ("1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"):
            asked = things(rows, image)
            assert asked[::2] == OBJECTS[image][:2]
            assert not set(asked[1::2]) & set(OBJECTS[image])
            assert len(set(asked)) == 4


def test_popular_takes_the_object_of_most_images_that_is_absent_and_not_asked_about_yet():
    rows = built()["popular"]
    assert things(rows, "1.jpg") == ["dog", "cat", "cup", "ant"]  # cat 2, then ant, seen before owl
    assert things(rows, "2.jpg") == ["cat", "cup", "ant", "dog"]


def test_adversarial_takes_what_most_often_stands_beside_that_present_object():
    rows = built()["adversarial"]
    assert things(rows, "1.jpg")[:2] == ["dog", "owl"]  # beside dog: cup, which is there, and owl
    assert things(rows, "2.jpg")[:2] == ["cat", "cup"]
    assert things(rows, "5.jpg")[:4] == ["cat", "ant", "cup", "dog"]


def test_adversarial_falls_back_to_any_absent_object_where_nothing_else_ever_stood_beside():
    rows = built()["adversarial"]
    assert things(rows, "2.jpg")[2] == "ant" and things(rows, "2.jpg")[3] in {"dog", "owl"}  # beside ant: cat alone


def test_random_draws_every_absent_object_about_as_often():
    objects = {f"{at}.jpg": ["dog", "cup"] for at in range(600)} | {"x.jpg": ["ant", "owl", "cat"]}
    rows = build(objects, num_images=601, per_image=1, strategies=["random"])["random"]
    drawn = Counter(things(rows, f"{at}.jpg")[1] for at in range(600))
    assert set(drawn) == {"ant", "owl", "cat"} and min(drawn.values()) > 150


def test_an_image_with_the_whole_vocabulary_is_asked_about_less_and_still_half_is_yes(tmp_path):
    objects = {"all.jpg": ["dog", "cup", "cat"], "two.jpg": ["dog", "cup", "dog"]}
    for rows in build(objects, num_images=2, per_image=2).values():
        assert things(rows, "all.jpg") == []
        assert things(rows, "two.jpg") == ["dog", "cat"]
        assert [row["question_id"] for row in rows] == [1, 2]


def test_the_article_goes_with_the_first_letter():
    rows = build({"1.jpg": ["apple"], "2.jpg": ["cup"]}, num_images=2, per_image=1)["popular"]
    apple, cup = "Is there an apple in the image?", "Is there a cup in the image?"
    assert [row["text"] for row in rows] == [apple, cup, cup, apple]


def test_the_same_seed_gives_the_same_questions_and_another_one_others():
    objects = {f"{at}.jpg": ["dog", "cup", f"thing{at}"] for at in range(30)}

    def drawn(seed):
        return build(objects, num_images=10, per_image=2, seed=seed)

    assert drawn(0) == drawn(0) != drawn(1)
    assert len({tuple(dict.fromkeys(row["image"] for row in rows)) for rows in drawn(0).values()}) == 1


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_images": 6}, "6 images were asked for, and 5 of 6 have at least 2 objects"),
        ({"num_images": 0}, "give at least 1"),
        ({"per_image": 0}, "give at least 1"),
        ({"strategies": []}, "a strategy at least"),
        ({"strategies": ["popula"]}, "no strategy 'popula': there are random, popular, adversarial"),
    ],
)
def test_what_cannot_be_built_is_an_error(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        built(**settings)


def test_what_is_written_can_be_asked_and_says_what_was_left_out(tmp_path):
    objects = OBJECTS | {"7.jpg": ["dog", "cup", "cat", "owl", "ant"]}
    file = tmp_path / "objects.jsonl"
    file.write_text("".join(json.dumps({"image": image, "objects": names}) + "\n" for image, names in objects.items()))
    written = write(file, tmp_path / "out", num_images=6, per_image=2)
    assert list(written.files) == ["random", "popular", "adversarial"]
    questions = POPE(files=written.files, images=None).questions()
    assert len(questions) == 3 * written.num_questions == 3 * (6 * 4 - 4)
    assert str(written).endswith(
        "pope_adversarial.jsonl: 20 questions about 6 images in each; left out: "
        "images with fewer than 2 objects (1), questions about images with too few objects absent (4)"
    )
    with pytest.raises(ValueError, match=r"pope_random\.jsonl exists already"):
        write(file, tmp_path / "out", num_images=6, per_image=2)
