"""CHAIR's ground truth from COCO: objects that people have outlined, and those that their captions mention.

The original unites both, since an object that a caption mentions is there whether or not it was outlined
(LisaAnne/Hallucination at 6e4d33c, utils/chair.py).
"""

import json
from pathlib import Path, PurePath
from typing import Any

from tqdm import tqdm

from synthalign.evals.answers import read_answers
from synthalign.evals.chair.answers import captions_by_image, meant
from synthalign.evals.chair.words import PlainWords, Words, plain, read_synonyms
from synthalign.evals.objects import read_objects
from synthalign.store import write_atomically
from synthalign.tables import field, json_whole


def write(
    out: Path,
    *,
    instances: Path,
    synonyms: Path,
    captions: Path | None = None,
    words: Words | None = None,
    answers: Path | None = None,
) -> int:
    """Write what is in each image, one row an image, as ``CHAIR`` reads it.

    Args:
        out: The JSON lines to write: ``image``, ``objects`` and ``truth_from``.
        instances: What ``read_objects`` reads, such as COCO's ``instances_val2014.json``.
        synonyms: The list of objects that ``CHAIR`` is to have.
        captions: COCO's captions of the same images, ``captions_val2014.json``; null takes the instances alone.
        words: How mentions are found in those captions, the variant that ``CHAIR`` is to have.
        answers: Saved captions of a model; only their images are written. Null writes all.

    Returns:
        How many images there are.

    Raises:
        ValueError: A file is not as it should be, or they are not about the same images.
    """
    listed, words = read_synonyms(synonyms), words or PlainWords()
    names = {plain(word): name for word, name in listed.items()}
    found = read_objects(instances)
    kept = list(found) if answers is None else _images_of(answers, list(found), instances)
    objects: dict[str, list[str]] = {}
    for image in kept:
        if unknown := [name for name in found[image] if plain(name) not in names]:
            raise ValueError(f"{instances}: {image}: object {unknown[0]!r} is not in {synonyms}; add it there")
        objects[image] = [names[plain(name)] for name in found[image]]
    source = "instances"
    if captions is not None:
        source, mentions = f"instances and captions, {words.variant} words", words.finder(listed)
        said = _captions(captions, instances)
        if silent := [image for image in kept if image not in said]:
            raise ValueError(
                f"{captions}: no caption of {silent[0]} and {len(silent) - 1} other images of {instances}; are both of "
                "one split?"
            )
        for image in tqdm(kept, desc="reading captions", unit="image", delay=2, leave=False):
            objects[image] += [name for caption in said[image] for name in mentions(caption)]
    rows = [{"image": image, "objects": sorted(set(names)), "truth_from": source} for image, names in objects.items()]
    write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return len(rows)


def _images_of(answers: Path, images: list[str], instances: Path) -> list[str]:
    """Return the images that saved captions are about, in the order of ``images``."""
    told = captions_by_image(answers)
    told = read_answers(answers) if told is None else told
    places = meant(told, [PurePath(image) for image in images])
    if foreign := [image_id for image_id, of in places.items() if not of]:
        raise ValueError(
            f"{answers}: image {foreign[0]!r} is not in {instances}, nor are {len(foreign) - 1} others; its images are "
            f"named as {images[0]!r} is"
        )
    if unclear := [image_id for image_id, of in places.items() if len(of) > 1]:
        names = ", ".join(images[place] for place in places[unclear[0]])
        raise ValueError(f"{answers}: image {unclear[0]!r} may mean any of {names}; give the whole name")
    wanted = {place for of in places.values() for place in of}
    return [image for place, image in enumerate(images) if place in wanted]


def _captions(file: Path, instances: Path) -> dict[str, list[str]]:
    """Read COCO's captions by the images' names."""
    whole = json_whole(file)
    try:
        images: dict[Any, str] = {image["id"]: image["file_name"] for image in whole["images"]}
        said: dict[str, list[str]] = {}
        for number, row in enumerate(whole["annotations"], 1):
            where, image = f"{file}, annotations, item {number}", row["image_id"]
            caption = field(row, "caption", where)
            if image not in images:
                raise ValueError(
                    f"{where}: a caption of image_id {image!r}, which is not in the file's 'images'; bring the whole "
                    f"file that belongs to {instances}"
                )
            said.setdefault(images[image], []).append(caption)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not as COCO writes captions: {error!r} in its images or annotations") from None
    return said
