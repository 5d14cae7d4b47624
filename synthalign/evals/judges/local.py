"""A judge that runs here, whose rating is read from the probabilities of the seven digits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from synthalign.evals.judges.asking import asked, hash_of, prompt_in
from synthalign.evals.mmhal.ratings import SCORES
from synthalign.store import fingerprint
from synthalign.types import Judgement
from synthalign.vlm import LLM
from synthalign.weights import load

BEGUN = "Rating:"
OWN_RATING = re.compile(r"[\s*#_]*\w*rating\W*:.*", re.IGNORECASE | re.DOTALL)
"""Where a model comes to its rating by itself, and all that follows."""


@dataclass(frozen=True, kw_only=True)
class LocalJudge:
    """A Judge that asks a local instruct model, and takes the likeliest of the digits 0 to 6 behind ``Rating:``.

    There is nothing to parse, so no judgement is lost, and the same answers get the same ratings. The judgement's text
    keeps the expected rating and the digits' probabilities, normalised among the seven, with it.

    Args:
        llm: The model; how it samples, and how long it may reply, does not matter.
        prompt: File of what it is asked, for figures that are to be compared with others': its fields are {contents},
            {question}, {reference} and {answer}, or four times {} as in MMHal-Bench's script. Null: our own.
        analysis_tokens: Let it first write an analysis, greedily, of up to this many tokens, and rate after that:
            slower by as many forward passes, and kinder to models that need to think aloud. 0: it rates at once.
    """

    llm: LLM
    prompt: Path | None = None
    analysis_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse a prompt that cannot be filled in."""
        prompt_in(self.prompt)
        if self.analysis_tokens < 0:
            raise ValueError(f"analysis_tokens must be >= 0, got {self.analysis_tokens}")

    def about(self) -> dict[str, str]:
        """Name the model, its folder's content or its commit, the hash of its prompt, and how its rating is read."""
        prompt = hash_of(self._prompt)
        if self.llm.system_prompt is not None:
            prompt += f", system {hash_of(self.llm.system_prompt)}"
        after = f"after up to {self.analysis_tokens} tokens of analysis" if self.analysis_tokens else "at once"
        folder = Path(self.llm.model)
        name = folder.resolve().name if folder.is_dir() else self.llm.model
        return {
            "judge": name if self.llm.quantization is None else f"{name} ({self.llm.quantization})",
            "judge_revision": self._revision,
            "judge_prompt": prompt,
            "judge_rating": f"the likeliest digit, {after}",
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
            ValueError: The model has no single token for each digit.
        """
        prompts = asked(self._prompt, contents, questions, references, answers)
        analyses = self._analyses(prompts)
        begun = [f"{analysis}\n{BEGUN}" if analysis else BEGUN for analysis in analyses]
        logps = self._llm.next_logps(prompts, begun, [f" {digit}" for digit in range(SCORES)])
        return [_judgement(start, row.softmax(-1)) for start, row in zip(begun, logps, strict=True)]

    def release(self) -> None:
        """Free the memory of the weights; the next call loads them again."""
        self._llm.release()

    def _analyses(self, prompts: Sequence[str]) -> list[str]:
        if not self.analysis_tokens:
            return [""] * len(prompts)
        return [OWN_RATING.sub("", reply.text).strip() for reply in self._llm.complete(prompts)]

    @cached_property
    def _llm(self) -> LLM:
        """The model, whose replies are as long as an analysis may be."""
        return replace(self.llm, max_new_tokens=max(self.analysis_tokens, 1))

    @cached_property
    def _prompt(self) -> str:
        return prompt_in(self.prompt)

    @cached_property
    def _revision(self) -> str:
        """The content of a folder, or the commit of what the hub has."""
        from transformers import AutoConfig

        if Path(self.llm.model).is_dir():
            return fingerprint(Path(self.llm.model))
        config = load(AutoConfig, self.llm.model, revision=self.llm.revision)
        return str(getattr(config, "_commit_hash", None) or self.llm.revision or "unknown")


def _judgement(begun: str, probs: Tensor) -> Judgement:
    """Put a rating down in words.

    Args:
        begun: What stands before it.
        probs: Of the seven digits, shape (7,).
    """
    score = int(probs.argmax())
    expected = sum(digit * prob for digit, prob in enumerate(probs.tolist()))
    listed = ", ".join(f"{prob:.3f}" for prob in probs.tolist())
    return Judgement(score, f"{begun} {score}\nExpected: {expected:.3f}. Probabilities of 0 to 6: {listed}.", True)
