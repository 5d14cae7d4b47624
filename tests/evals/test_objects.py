import json
from typing import Any

import pytest

from synthalign.evals.objects import read_objects

LINES = [{"image": "1.jpg", "objects": ["dog", "cup", "dog"], "image_id": 1}, {"image": "2.jpg", "objects": []}]
COCO: dict[str, Any] = {
    "images": [{"id": 2, "file_name": "b.jpg"}, {"id": 1, "file_name": "a.jpg"}],
    "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "cup"}],
    "annotations": [
        {"image_id": 1, "category_id": 9},
        {"image_id": 1, "category_id": 7},
        {"image_id": 1, "category_id": 9},
    ],
}


def written(tmp_path, content):
    file = tmp_path / "objects.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("content", [lines(LINES), LINES, json.dumps(LINES, indent=2)])
def test_each_object_of_an_image_stands_once_in_the_order_first_seen(tmp_path, content):
    assert read_objects(written(tmp_path, content)) == {"1.jpg": ["dog", "cup"], "2.jpg": []}


def test_a_single_line_is_a_line(tmp_path):
    assert read_objects(written(tmp_path, lines(LINES[:1]))) == {"1.jpg": ["dog", "cup"]}


@pytest.mark.parametrize("indent", [None, 1])
def test_cocos_instances_give_names_of_categories_and_images_without_any(tmp_path, indent):
    objects = read_objects(written(tmp_path, json.dumps(COCO, indent=indent)))
    assert list(objects.items()) == [("b.jpg", []), ("a.jpg", ["cup", "dog"])]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (lines([*LINES, LINES[0]]), r"line 3: the image '1\.jpg' stands twice"),
        (lines([LINES[0], {"image": "2.jpg"}]), "line 2: 'objects' must be a list of names, found None"),
        (lines([LINES[0], {"image": "2.jpg", "objects": ["cup", ""]}]), "line 2: 'objects' must be a list"),
        (lines([LINES[0], {"image": 2, "objects": []}]), "line 2: 'image' must be text, found 2"),
        (lines(LINES) + "{", "line 3: malformed JSON"),
        ("", "no images"),
        ([], "no images"),
        (COCO | {"annotations": [{"image_id": 3, "category_id": 7}]}, "annotations, item 1: there is no image of .* 3"),
        (COCO | {"annotations": [{"image_id": 1, "category_id": 3}]}, "item 1: there is no category of the id 3"),
        (COCO | {"annotations": [{"image_id": [1], "category_id": 3}]}, r"'image_id' must be a number or text"),
        (COCO | {"images": [*COCO["images"], COCO["images"][0]]}, r"images, item 3: the image 'b\.jpg' stands twice"),
        (COCO | {"categories": None}, "'categories' must be a list of objects"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(tmp_path, content, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        read_objects(written(tmp_path, content))
    assert "\n" not in str(caught.value) and "objects.json" in str(caught.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no such file: .*absent\.json"):
        read_objects(tmp_path / "absent.json")
