"""A vision-language model that looks at the image and says whether a response is true of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from PIL.Image import Image
from torch import Tensor, tensor

from synthalign.rewards.conversations import check_format
from synthalign.vlm import VLM

ASKED = (
    "Question about this image: {question}\n"
    "Answer that was given: {response}\n"
    "Check the answer against the image. Is everything it says really so? Reply with one word, Yes or No."
)


@dataclass(frozen=True, kw_only=True)
class VLMJudge:
    """Scores a response by logit(yes) - logit(no) of a model asked whether it is faithful to the image.

    A ResponseReward that sees what text rewards cannot. Source of the idea: RLAIF-V (arXiv 2405.17220), which asks
    about each claim; here one question is asked about the whole response.

    Args:
        judge: The model; how it samples and how long it may reply does not matter.
        question_format: What it is asked; {question}, {response} and {prompt} (what the image was drawn from) are
            filled in. A yes must mean a good response.
    """

    judge: VLM
    question_format: str = ASKED

    def __post_init__(self) -> None:
        """Refuse a format that cannot be filled."""
        check_format("question_format", self.question_format, ["question", "response"], ["prompt"])

    @cached_property
    def asked(self) -> VLM:
        """The judge, which one token of a reply is enough of."""
        return replace(self.judge, max_new_tokens=1)

    def score(
        self, prompts: Sequence[str], images: Sequence[Image], questions: Sequence[str], responses: Sequence[str]
    ) -> Tensor:
        """Return n scores, shape (n,), float32, nats; higher is better. Equal questions of an image are asked once.

        Raises:
            ValueError: The model has no tokens of its own for yes and no.
        """
        images = list(images)  # opened once, where they are opened when asked for: rows name them by identity
        rows = [
            (id(image), self.question_format.format(prompt=prompt, question=question, response=response))
            for prompt, image, question, response in zip(prompts, images, questions, responses, strict=True)
        ]
        if not rows:
            return tensor([])
        if not all(self.asked.chat.yes_no_ids):
            raise ValueError(f"model {self.judge.model!r} cannot judge: its tokenizer does not tell Yes from No")
        pictured = {id(image): image for image in images}
        distinct = list(dict.fromkeys(rows))
        # In one call, so that what the questions about an image have in common is computed once.
        replies = self.asked.respond([pictured[image] for image, _ in distinct], [text for _, text in distinct])
        margins = {}
        for row, reply in zip(distinct, replies, strict=True):
            assert reply.yes_margin is not None
            margins[row] = reply.yes_margin
        return tensor([margins[row] for row in rows])

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        self.asked.release()
