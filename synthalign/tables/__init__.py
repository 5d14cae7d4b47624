"""The columns at each landing, and other people's formats in and out."""

from synthalign.tables.columns import ANSWERS, DRAWS, IMAGE_TOKEN, IMAGES, PAIRS, RANKS, SCORES, TABLE_SUFFIX
from synthalign.tables.hub import check_repo, push_folder
from synthalign.tables.images import MAX_PIXELS, ImageColumn, ImageFiles, image_in, open_image
from synthalign.tables.pairset import PairRow, PairSet
from synthalign.tables.prompts import PromptFile, PromptRow, read_prompts
from synthalign.tables.reading import read_pairs
from synthalign.tables.rows import field, json_rows, json_whole, text_in
from synthalign.tables.writing import Format, write_pairs

__all__ = [
    "ANSWERS",
    "DRAWS",
    "IMAGES",
    "IMAGE_TOKEN",
    "MAX_PIXELS",
    "PAIRS",
    "RANKS",
    "SCORES",
    "TABLE_SUFFIX",
    "Format",
    "ImageColumn",
    "ImageFiles",
    "PairRow",
    "PairSet",
    "PromptFile",
    "PromptRow",
    "check_repo",
    "field",
    "image_in",
    "json_rows",
    "json_whole",
    "open_image",
    "push_folder",
    "read_pairs",
    "read_prompts",
    "text_in",
    "write_pairs",
]
