"""Which token comes next: what a model's generation config asks for, then a draw or the likeliest.

N rows, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from synthalign.vlm.attention import NotCarriedError
from synthalign.vlm.plain import GREEDY
from synthalign.vlm.sampler import KeyedSampler, YesMargin

ROW_BY_ROW = {
    "ExponentialDecayLengthPenalty",
    "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor",
    "InfNanRemoveLogitsProcessor",
    "LogitNormalization",
    "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor",
    "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor",
    "RepetitionPenaltyLogitsProcessor",
    "SequenceBiasLogitsProcessor",
    "SuppressTokensAtBeginLogitsProcessor",
    "SuppressTokensLogitsProcessor",
}
"""Processors of transformers that look at each row's own tokens only, so that rows may leave the batch."""

STOPS = {"MaxLengthCriteria", "EosTokenCriteria"}


class Choice:
    """Chooses tokens as ``generate`` would: by the same processors in the same order.

    Args:
        network: The model.
        prompts: N prompts' tokens.
        margin: Looks at the first logits of each row.
        sampler: Draws the tokens, N seeds; greedy without.
        max_new_tokens: Length limit of a reply, tokens.
        pad_token_id: Of the tokenizer.

    Raises:
        NotCarriedError: The model's generation config asks for something that cannot be done row by row.
    """

    def __init__(
        self,
        network: Any,  # noqa: ANN401
        prompts: Sequence[Tensor],
        margin: YesMargin | None,
        sampler: KeyedSampler | None,
        *,
        max_new_tokens: int,
        pad_token_id: int,
    ) -> None:
        self.margin, self.sampler = margin, sampler
        longest = max(len(prompt) for prompt in prompts)
        # A row's first token pads it: a padding token of its own would be penalised for being repeated.
        rows = [torch.cat([prompt[:1].expand(longest - len(prompt)), prompt]) for prompt in prompts]
        self.said = torch.stack(rows).to(network.device)
        self.processors, self.stops = _asked_for(network, self.said, max_new_tokens, pad_token_id)

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Choose the next token (n,) of n of the rows from their logits (n, V); the others have ended."""
        if self.processors:
            at = torch.tensor(rows, device=self.said.device)
            logits = self.processors(self.said[at], logits)
        if self.margin is not None:
            logits = self.margin(self.said, logits)
        tokens = logits.argmax(-1) if self.sampler is None else self.sampler.draw(logits, rows)
        if self.processors:
            new = self.said.new_zeros(len(self.said), 1)
            new[at, 0] = tokens
            self.said = torch.cat([self.said, new], 1)
        return tokens


def _asked_for(
    network: Any,  # noqa: ANN401
    ids: Tensor,
    max_new_tokens: int,
    pad_token_id: int,
) -> tuple[LogitsProcessorList, set[int]]:
    """Ask ``generate`` how it would choose, and what ends a reply, without letting it do so."""
    found: dict[str, Any] = {}

    def look(
        model: Any,  # noqa: ANN401
        input_ids: Tensor,
        logits_processor: Any,  # noqa: ANN401
        stopping_criteria: Any,  # noqa: ANN401
        generation_config: Any,  # noqa: ANN401
        **others: Any,  # noqa: ANN401
    ) -> Tensor:
        found.update(processors=logits_processor, criteria=stopping_criteria)
        return input_ids

    network.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **GREEDY,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_token_id,
        custom_generate=look,
    )
    if strange := [type(one).__name__ for one in found["processors"] if type(one).__name__ not in ROW_BY_ROW]:
        raise NotCarriedError(f"its generation config asks for {strange[0]}")
    if strange := [type(one).__name__ for one in found["criteria"] if type(one).__name__ not in STOPS]:
        raise NotCarriedError(f"its generation config asks for {strange[0]}")
    stops = [one.eos_token_id.tolist() for one in found["criteria"] if hasattr(one, "eos_token_id")]
    return found["processors"], {token for tokens in stops for token in tokens}
