"""The nouns and verbs that every room speaks.

Nouns are named tuples; verbs are Protocols, so a part needs no base class: any object with the right method fits.
Everything is flat: one prompt to one image, one question to one reply. That there are k candidates is a fact of the
pipeline, not of a model, so each part can be tested alone and batched freely.

Shapes: n rows of a call, B pairs of a batch.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from PIL.Image import Image
from torch import Tensor


class ImageRequest(NamedTuple):
    """One image to draw. The same request gives the same image."""

    prompt: str
    seed: int
    guidance_scale: float


class Reply(NamedTuple):
    """What a model said to one question about one image.

    ``truncated`` is true when ``max_new_tokens`` ended the reply instead of the model. ``yes_margin`` is
    logit(yes) - logit(no) at the first token of the reply, in nats; None where the model does not show its logits.
    """

    text: str
    truncated: bool = False
    yes_margin: float | None = None


class Question(NamedTuple):
    """One question of an evaluation.

    ``id`` is unique within the evaluation. ``kind`` groups the report (POPE's split, MMHal's question type).
    ``truth`` is what the verdict is held against: JSON-able, and the evaluation's own affair.
    """

    id: str
    image: Path
    text: str
    kind: str
    truth: Any


class Judgement(NamedTuple):
    """A judge's rating of one answer.

    ``score`` runs from 0 (worst) to 6 (best); below 3 the answer hallucinates. ``parsed`` is false when no single
    rating could be read in ``text``; ``score`` is 0 then, as in MMHal-Bench's own script.
    """

    score: int
    text: str
    parsed: bool


class Drop(NamedTuple):
    """Why something did not become a training pair. Drops are counted by ``reason`` and kept with their ``detail``."""

    reason: str
    detail: str


class PickedPair(NamedTuple):
    """Two responses to one question that a rule has picked, before the gates have seen them.

    ``margin`` is score(chosen) - score(rejected), None if unscored. ``margins`` holds the same for each part of a
    mixture of rewards, by its name.
    """

    question: str
    chosen: str
    rejected: str
    margin: float | None = None
    margins: Mapping[str, float] = MappingProxyType({})


class PairLogps(NamedTuple):
    """Log-probabilities of the responses of B pairs: sums over response tokens, in nats, with the tokens' counts."""

    chosen: Tensor  # (B,)
    rejected: Tensor  # (B,)
    chosen_tokens: Tensor  # (B,) integers
    rejected_tokens: Tensor  # (B,) integers


class PreferenceTerms(NamedTuple):
    """What a preference loss gives back for B pairs. Rewards are beta times the log-ratio to the reference."""

    loss: Tensor  # (B,) with gradient
    chosen_rewards: Tensor  # (B,) detached
    rejected_rewards: Tensor  # (B,) detached


class ImageGenerator(Protocol):
    """Draws images from text."""

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """Draw one RGB image per request; an image depends on its request (and, in its last bits, on its batch)."""
        ...

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        ...


class ImageSeeds(Protocol):
    """Says from which seed a candidate image is drawn."""

    def __call__(self, prompt_id: str, candidate: int) -> int:
        """Return the seed of candidate ``candidate``, counted from 0, of a prompt: 0 to 2**63 - 1."""
        ...


class ImageReward(Protocol):
    """Scores images against the prompts they were drawn from."""

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Tensor:
        """Return n scores, shape (n,); higher is better."""
        ...

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        ...


class Responder(Protocol):
    """Answers questions about images."""

    def respond(
        self, images: Sequence[Image], questions: Sequence[str], seeds: Sequence[int] | None = None
    ) -> list[Reply]:
        """Answer each question about its image: greedily, or, given one seed per row, by sampling.

        A row's sampling noise is keyed by (its seed, step): it does not depend on the other rows of the call.
        """
        ...

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        ...


class Policy(Protocol):
    """The model in training, as evaluations see it."""

    def answer(self, images: Sequence[Image], questions: Sequence[str], *, max_new_tokens: int) -> list[Reply]:
        """Answer each question about its image, greedily."""
        ...

    @property
    def has_adapter(self) -> bool:
        """Whether the policy differs from its base by an adapter: then the two can be set side by side."""
        ...

    def adapters_off(self) -> AbstractContextManager[None]:
        """Make the policy its own frozen base model for a while."""
        ...


class ResponseReward(Protocol):
    """Scores responses. A reward is free to look at the drawing prompt, at the image, at both or at neither."""

    def score(
        self, prompts: Sequence[str], images: Sequence[Image], questions: Sequence[str], responses: Sequence[str]
    ) -> Tensor:
        """Return n scores, shape (n,); higher is better. ``prompts`` are what the images were drawn from."""
        ...

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        ...


class PairRule(Protocol):
    """Picks (chosen, rejected) among the scored candidates of one question."""

    def __call__(self, scores: Sequence[float], seed: int) -> tuple[int, int] | None:
        """Return the two positions in ``scores``, or None if there is no pair in them.

        ``seed`` is the question's own, for a rule that draws.
        """
        ...


class ResponseGate(Protocol):
    """Refuses unfit responses before a pair is picked, so that one bad candidate does not cost the question."""

    def __call__(self, question: str, reply: Reply) -> Drop | None:
        """Say why the reply is unfit, or None. Of a reply in an existing set nothing but its text is known."""
        ...


class PairGate(Protocol):
    """Refuses unfit pairs."""

    def __call__(self, pair: PickedPair) -> Drop | None:
        """Say why the pair is unfit, or None."""
        ...


class PreferenceLoss(Protocol):
    """Turns log-probs of policy and reference into a loss."""

    def __call__(self, policy: PairLogps, reference: PairLogps) -> PreferenceTerms:
        """Return the B losses, not reduced."""
        ...


class Schedule(Protocol):
    """Changes the learning rate as training goes on."""

    def __call__(self, step: int, num_steps: int) -> float:
        """Return the multiplier of the optimizer's rate at optimizer step ``step`` (from 0) of ``num_steps``."""
        ...


class Eval(Protocol):
    """A benchmark: questions, a verdict on each reply, and a report from additive tallies.

    Tallies of disjoint shares of the questions add up to the tally of all, so several ranks come right by themselves.
    """

    @property
    def name(self) -> str:
        """Prefix of the metrics, such as ``pope``."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Length limit of a reply, tokens."""
        ...

    def questions(self) -> Sequence[Question]:
        """Return all questions, always in the same order."""
        ...

    def about(self) -> dict[str, str]:
        """Say what the figures depend on besides the model, such as a parser, a variant or a judge: name to value."""
        ...

    def verdicts(self, questions: Sequence[Question], replies: Sequence[Reply]) -> list[dict[str, Any]]:
        """Read each reply: one JSON-able row per question.

        Each has ``correct``: whether the reply is right, or free of hallucination; None where nobody judged it.
        """
        ...

    def tally(self, questions: Sequence[Question], verdicts: Sequence[dict[str, Any]]) -> Tensor:
        """Sum what the report needs over these rows: a float64 vector, the same length for any rows, zero for none."""
        ...

    def report(self, total: Tensor) -> dict[str, float]:
        """Turn the summed tally into metrics, keys without the eval's name, such as ``random/accuracy``."""
        ...


class Judge(Protocol):
    """Rates answers from 0 to 6 against a reference, from text alone, as MMHal-Bench's judge does."""

    def about(self) -> dict[str, str]:
        """Say who judges: ``judge``, ``judge_revision`` and ``judge_prompt``, the hash of what it is asked."""
        ...

    def judge(
        self,
        contents: Sequence[Sequence[str]],
        questions: Sequence[str],
        references: Sequence[str],
        answers: Sequence[str],
    ) -> list[Judgement]:
        """Rate each answer. ``contents`` lists what is in each image."""
        ...

    def release(self) -> None:
        """Free the memory of the weights, if there are any; the next call loads them again."""
        ...
