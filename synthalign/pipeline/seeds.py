"""Seeds of candidate images, where they are to be those of another program."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NumberedSeeds:
    """The Synth-Align authors' seeds: an ImageSeeds.

    A prompt whose id ends in the number i, as transport-919 does, gets i * 1000 + 1 for its first candidate, then
    i * 1000 + 2, and so on.

    Source: github.com/pds-dpo/pds-dpo at 40ff9a9, image_generation_ranking/run.py.
    """

    def __call__(self, prompt_id: str, candidate: int) -> int:
        """Return the seed of a candidate, counted from 0.

        Raises:
            ValueError: The id does not end in a number.
        """
        number = re.search(r"\d{1,15}$", prompt_id)
        if number is None:
            raise ValueError(f"NumberedSeeds needs ids that end in a number, such as transport-919; got {prompt_id!r}")
        return int(number[0]) * 1000 + candidate + 1
