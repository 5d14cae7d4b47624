"""Many questions about many images become replies."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from synthalign.batching import in_batches, is_out_of_memory
from synthalign.types import Reply
from synthalign.vlm.branches import Branches
from synthalign.vlm.chat import Chat
from synthalign.vlm.choice import Choice
from synthalign.vlm.decode import decode
from synthalign.vlm.families import encoder_stays, takes_features
from synthalign.vlm.kept import KeptFeatures
from synthalign.vlm.plain import Said, generate, to_model
from synthalign.vlm.sampler import KeyedSampler, YesMargin
from synthalign.vlm.tried import shares, warn, window_of


@torch.no_grad()
def reply(
    model: Any,  # noqa: ANN401 - any Hugging Face model that generates, PEFT's wrapper included
    chat: Chat,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    sampler: KeyedSampler | None = None,
    kept: KeptFeatures | None = None,
    synced: bool = False,
) -> list[Reply]:
    """Let a model in eval mode reply to n questions.

    Rows that have an image, as the same object, in common read it and what their prompts begin with once, and rows that
    have the question in common as well read that once. A model that this would get wrong is told on the terminal, and
    its rows are read one by one.

    Args:
        model: The model.
        chat: Its chat.
        images: n images.
        questions: n questions.
        max_new_tokens: Length limit of a reply, tokens. With 1 a prompt is read and nothing behind it: exact where a
            reply is one token, and then ``truncated`` says no more than that its end was not waited for.
        batch_size: Rows generated at once.
        sampler: Draws the tokens; greedy without.
        kept: Features of images seen in earlier calls, told by their content; looked up, and added to. Not used while
            vision tower or projector are trained or have an adapter on them.
        synced: The weights are spread over the ranks, which all call this with equally many questions: every rank then
            runs as many forwards as every other. Each row reads its own prompt, and no batch is halved.

    Returns:
        n replies, in the order of the questions.

    Raises:
        RuntimeError: Memory does not suffice for one row, or, ``synced``, for a batch.
    """
    if not questions:
        return []
    images = list(images)  # of a sequence that opens them anew, objects would not stay the same
    call = _Rows(model, chat, images, questions, max_new_tokens, sampler, synced)
    name = f"replies of {chat.model}"
    if synced:  # not even tried: a rank that found otherwise than another would wait for it for ever
        warn(model, chat, "its weights are sharded")
    if not synced and shares(model, chat, images, questions, max_new_tokens=max_new_tokens):
        steady = kept is not None and takes_features(model) and encoder_stays(model)
        branches = Branches(model, chat, images, questions, kept if steady else None)
        order = branches.order()
        done = in_batches(order, batch_size, partial(call.sharing, branches), name)
    else:
        order = call.plain_order()
        repeated = len({id(image) for image in images}) < len(images)
        with chat.each_image_once() if repeated else nullcontext():
            done = (_in_step if synced else in_batches)(order, batch_size, call.plainly, name)
    replies = dict(zip(order, done, strict=True))
    return [replies[row] for row in range(len(questions))]


def _in_step(rows: Sequence[int], size: int, work: Callable[[Sequence[int]], list[Reply]], name: str) -> list[Reply]:
    """Work through rows in batches of one size, whatever happens."""
    done: list[Reply] = []
    for start in range(0, len(rows), size):
        try:
            done += work(rows[start : start + size])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RuntimeError(
                f"{name}: out of memory with {size} rows at once, which ranks that share the weights cannot halve: "
                "set a smaller batch size"
            ) from error
    return done


@dataclass(frozen=True)
class _Rows:
    """The rows of a call."""

    model: Any
    chat: Chat
    images: Sequence[Image.Image]
    questions: Sequence[str]
    max_new_tokens: int
    sampler: KeyedSampler | None
    synced: bool

    def plain_order(self) -> list[int]:
        """Return the rows with questions alike side by side, so that replies end together."""
        return sorted(range(len(self.questions)), key=lambda n: (len(self.questions[n]), self.questions[n], n))

    def plainly(self, rows: Sequence[int]) -> list[Reply]:
        """Reply to some rows, each of which reads its whole prompt."""
        margin, sampler = self._margin(), self._sampler(rows)
        encoded = self.chat.inputs([self.images[row] for row in rows], [self.questions[row] for row in rows])
        said = generate(
            self.model,
            to_model(self.model, encoded),
            [margin, sampler],
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self.chat.tokenizer.pad_token_id,
            synced=self.synced,
        )
        return self._replies(said, margin)

    def sharing(self, branches: Branches, rows: Sequence[int]) -> list[Reply]:
        """Reply to some rows, which read once what they have in common."""
        prompts = branches.prompts(rows)
        longest = max(len(prompt.ids) for prompt in prompts) + self.max_new_tokens
        if longest > (window := window_of(self.model)):
            warn(self.model, self.chat, f"{longest} tokens are more than its sliding window of {window}")
            return self.plainly(rows)
        margin = self._margin()
        choose = Choice(
            self.model,
            [prompt.ids for prompt in prompts],
            margin,
            self._sampler(rows),
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self.chat.tokenizer.pad_token_id,
        )
        started = branches.start(rows)
        said = decode(self.model, started, choose, choose.stops, max_new_tokens=self.max_new_tokens)
        return self._replies(said, margin)

    def _margin(self) -> YesMargin | None:
        yes_ids, no_ids = self.chat.yes_no_ids
        return YesMargin(yes_ids, no_ids) if yes_ids and no_ids else None

    def _sampler(self, rows: Sequence[int]) -> KeyedSampler | None:
        return None if self.sampler is None else self.sampler.rows(rows)

    def _replies(self, said: Said, margin: YesMargin | None) -> list[Reply]:
        texts = self.chat.processor.batch_decode(said.tokens, skip_special_tokens=True)
        margins = margin.margins if margin is not None and margin.margins is not None else [None] * len(texts)
        rows = zip(texts, said.truncated, margins, strict=True)
        return [Reply(text.strip(), truncated, yes) for text, truncated, yes in rows]
