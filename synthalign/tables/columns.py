"""The columns at each landing, and the rows that go between the rooms.

A stage's row carries the id of the prompt (``kitchen-0001``) or, from the answers on, of the question
(``kitchen-0001/2``: the third question about that prompt's image). Tables are joined by these ids.
"""

import pyarrow as pa

IMAGE_TOKEN = "<image>"
"""What other people's texts hold where the image goes; ours never do."""

TABLE_SUFFIX = ".table"
"""Of a file in a finished landing that names one table's shards in order; runs whose prompts differ share shards."""

KEY = ("key", pa.string())
"""Names what a row was made from: a later run finds it by that, whatever else its prompts file holds."""

SCORES_BY_PART = pa.list_(pa.struct({"reward": pa.string(), "score": pa.float64()}))
"""Of the parts of a mixture of rewards; null where a part gave no finite number. Empty where there is one reward."""

DRAWS = pa.schema(
    [
        KEY,
        ("id", pa.string()),
        ("prompt", pa.string()),
        (
            "candidates",
            pa.list_(pa.struct({"seed": pa.int64(), "guidance_scale": pa.float64(), "image": pa.binary()})),  # PNG
        ),
    ]
)
RANKS = pa.schema([KEY, ("id", pa.string()), ("scores", pa.list_(pa.float64()))])
IMAGES = pa.schema(
    [
        KEY,
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("image", pa.binary()),  # PNG of the best candidate
        ("best", pa.int32()),  # its place among the candidates
        ("scores", pa.list_(pa.float64())),  # of all candidates
    ]
)
ANSWERS = pa.schema(
    [
        KEY,
        ("id", pa.string()),
        ("image_id", pa.string()),
        ("question", pa.string()),
        ("responder", pa.string()),
        ("responses", pa.list_(pa.struct({"text": pa.string(), "truncated": pa.bool_()}))),
    ]
)
SCORES = pa.schema(
    [
        KEY,
        ("id", pa.string()),
        ("image_id", pa.string()),
        ("question", pa.string()),
        (
            "candidates",
            pa.list_(
                pa.struct(
                    {
                        "responder": pa.string(),
                        "text": pa.string(),
                        "truncated": pa.bool_(),
                        "score": pa.float64(),  # null where the response is empty, or the reward gave no finite number
                    }
                )
            ),
        ),
    ]
)
PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("image_id", pa.string()),
        ("image_key", pa.string()),  # of the image's row in the landings before
        ("prompt", pa.string()),
        ("question", pa.string()),
        ("image", pa.struct({"bytes": pa.binary(), "path": pa.string()})),  # as the datasets library has it
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("chosen_responder", pa.string()),
        ("rejected_responder", pa.string()),
        (
            "candidates",
            pa.list_(
                pa.struct(
                    {
                        "responder": pa.string(),
                        "text": pa.string(),
                        "truncated": pa.bool_(),
                        "score": pa.float64(),
                        "scores": SCORES_BY_PART,
                        "refused": pa.string(),  # why the rule never saw it; null where it did
                        "detail": pa.string(),
                    }
                )
            ),
        ),
        ("picked", pa.list_(pa.int32())),  # places of the two that the rule picked; null where it picked none
        ("dropped", pa.string()),  # why there is no pair; null where there is one
        ("detail", pa.string()),
    ]
)
