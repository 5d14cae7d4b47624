"""A judge behind a server, whose rating is read from what it writes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from synthalign.clients import ServedLLM
from synthalign.evals.judges.asking import asked, hash_of, prompt_in
from synthalign.evals.mmhal.benchmark import parse_rating
from synthalign.types import Judgement

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServedJudge:
    """A Judge that asks a model behind any OpenAI-compatible server, greedily, and reads its text as MMHal-Bench does.

    A judgement from which no single rating can be read counts as a hallucination there, so it must have room to come
    to its rating: ``max_new_tokens`` of the server is its limit. A name such as ``gpt-4o`` may mean another model next
    month: give one with its date, or say in ``revision`` which it is.

    Args:
        server: The model.
        prompt: File of what it is asked, for figures that are to be compared with others': its fields are {contents},
            {question}, {reference} and {answer}, or four times {} as in MMHal-Bench's script. Null: our own.
    """

    server: ServedLLM
    prompt: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a prompt that cannot be filled in."""
        prompt_in(self.prompt)

    def about(self) -> dict[str, str]:
        """Name the model, the hash of its prompt, and how its rating is read."""
        prompt = hash_of(self._prompt)
        if self.server.system_prompt is not None:
            prompt += f", system {hash_of(self.server.system_prompt)}"
        return {
            "judge": self.server.model,
            "judge_revision": self.server.revision or "unknown",
            "judge_prompt": prompt,
            "judge_rating": f"read as the official script does, from up to {self.server.max_new_tokens} tokens",
        }

    def judge(
        self,
        contents: Sequence[Sequence[str]],
        questions: Sequence[str],
        references: Sequence[str],
        answers: Sequence[str],
    ) -> list[Judgement]:
        """Rate each answer. ``contents`` lists what is in each image.

        Raises:
            RuntimeError: A request has failed for good.
        """
        replies = self.server.complete(asked(self._prompt, contents, questions, references, answers))
        judgements = [parse_rating(reply.text) for reply in replies]
        cut = sum(reply.truncated and not one.parsed for reply, one in zip(replies, judgements, strict=True))
        if cut:
            log.warning(
                "judge %s: %d of %d judgements were cut off before their rating and count as hallucinations; raise "
                "max_new_tokens (%d)",
                self.server.model,
                cut,
                len(judgements),
                self.server.max_new_tokens,
            )
        return judgements

    def release(self) -> None:
        """Do nothing: the server holds the weights."""
        self.server.release()

    @cached_property
    def _prompt(self) -> str:
        return prompt_in(self.prompt)
