"""A layout that knows no model."""

from typing import Any

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.layouts import Laid
from synthalign.vlm.attention import NotCarriedError


class Never:
    def __call__(self, network: Any, batch: PreferenceBatch) -> Laid:
        raise NotCarriedError("it knows none")
