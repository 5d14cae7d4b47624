"""The journey from prompts to pairs: draw, rank, answer, score, pair. The only file that knows the order.

Every stage walks the whole table before the next begins, so one large model is in memory at a time, and leaves a
landing on disk. To which shard a row belongs is fixed by its id, never by rank or by what is missing; every draw is
keyed by (seed, id, sample). So the table is the same on any number of ranks, killed or not.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from synthalign import tables
from synthalign.pairs import PAIR_GATES, RESPONSE_GATES, BestWorst
from synthalign.pipeline import making
from synthalign.pipeline.items import Asked, Picture, pictures, questions
from synthalign.pipeline.making import Rows
from synthalign.pipeline.walk import Stage, walk
from synthalign.rewards.mixture import ImageMixture, ResponseMixture
from synthalign.store import (
    Landing,
    Shard,
    digest,
    recipe_of,
    seed_of,
    shards_by_id,
    sign_of_life,
    wait_for,
    write_atomically,
)
from synthalign.store.shards import hash_of
from synthalign.types import (
    Drop,
    ImageGenerator,
    ImageReward,
    ImageSeeds,
    PairGate,
    PairRule,
    Responder,
    ResponseGate,
    ResponseReward,
)

Item = TypeVar("Item", Picture, Asked)


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Makes preference pairs out of prompts, with nobody labelling anything.

    Source: Synth-Align (arXiv 2412.17417); its defaults are four images a prompt at guidance 5, 7, 9 and 11.

    Args:
        prompts: Prompts file: a line of JSON each, {"id", "prompt", "question"} or, for several questions about one
            image, {"id", "prompt", "questions": [...]}.
        store: Folder of the landings; it may be shared by runs, which then share what they have in common.
        generator: Draws the candidate images.
        image_reward: Picks the best image of each prompt. The parts of an ImageMixture score one after the other.
        responders: Answer the questions about it, one after the other.
        response_reward: Scores the responses. The parts of a ResponseMixture score one after the other.
        rule: Picks chosen and rejected among a question's scored responses; best against worst by default.
        response_gates: Keep unfit responses from the rule; RESPONSE_GATES of synthalign.pairs by default.
        pair_gates: Refuse unfit pairs; PAIR_GATES of synthalign.pairs by default.
        num_images: Candidate images per prompt.
        guidance_scales: Of the candidates, in turn.
        image_seeds: Says from which seed a candidate is drawn; by default one of its own, derived from ``seed``, the
            prompt's id and the candidate's number.
        num_samples: Responses per responder and question.
        greedy: Take each responder's greedy response instead of samples; num_samples must be 1 then.
        shard_size: Prompts per shard, about: what is computed, and lost when the process dies, at once.
        seed: Of everything drawn.
    """

    prompts: str
    store: str
    generator: ImageGenerator
    image_reward: ImageReward
    responders: list[Responder]
    response_reward: ResponseReward
    rule: PairRule | None = None
    response_gates: list[ResponseGate] | None = None
    pair_gates: list[PairGate] | None = None
    num_images: int = 4
    guidance_scales: list[float] = field(default_factory=lambda: [5.0, 7.0, 9.0, 11.0])
    image_seeds: ImageSeeds | None = None
    num_samples: int = 1
    greedy: bool = False
    shard_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        for name in ("num_images", "num_samples", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.responders or not self.guidance_scales:
            raise ValueError("responders and guidance_scales must not be empty")
        if len(self.responders) * self.num_samples < 2:
            raise ValueError("a pair needs two responses: raise num_samples or add a responder")
        if self.greedy and self.num_samples > 1:
            raise ValueError(f"greedy responses are all alike: num_samples must be 1, got {self.num_samples}")

    def __getstate__(self) -> dict[str, Any]:
        """Go to another process as the settings alone; whatever is cached, it finds out by itself."""
        return {setting.name: getattr(self, setting.name) for setting in fields(self)}

    def run(self, rank: int = 0, world_size: int = 1) -> Path:
        """Make whatever is missing, this rank its own shards, and wait for the other ranks'.

        Args:
            rank: Of this process, 0 to world_size - 1.
            world_size: Number of processes that run this with the same settings.

        Returns:
            The table of the pairs: ``tables.read_pairs`` reads it.

        Raises:
            ValueError: A setting or the prompts file is not as it should be.
            RuntimeError: Another rank died.
        """
        last = self.stages[-1]
        # Of this table alone: a rank that makes another one, of other prompts in the same store, makes no shard of it.
        signs = last.landing.folder / ".alive" / self.table.stem
        with sign_of_life(signs, rank):
            for stage in self.stages:
                walk(stage, rank, world_size)
            owed = last.shards

            def missing() -> list[tuple[int, str]]:
                nonlocal owed
                owed = [shard for shard in owed if not last.landing.has(shard)]
                return [(shard.number % world_size, shard.name) for shard in owed]

            wait_for(missing, signs)
        # Every rank writes the same, so that none has to wait for another to do so.
        write_atomically(self.table, json.dumps([shard.name for shard in last.shards], indent=1).encode())
        return self.table

    @property
    def table(self) -> Path:
        """Where the table of the pairs is, or will be: a file that names its shards in order."""
        last = self.stages[-1]
        return last.landing.folder / (digest([shard.name for shard in last.shards]) + tables.TABLE_SUFFIX)

    @cached_property
    def rows(self) -> tables.PromptFile:
        """The prompts file."""
        return tables.PromptFile(Path(self.prompts))

    @cached_property
    def stages(self) -> list[Stage]:
        """The whole journey; nothing is loaded or computed yet."""
        drawing, ranking, picking = self._picture_stages()
        asking = self._answer_stages(picking)
        scoring = self._score_stages(picking, asking)
        return [drawing, *ranking.values(), picking, *asking, *scoring.values(), self._pair_stage(picking, scoring)]

    def _picture_stages(self) -> tuple[Stage, dict[str, Stage], Stage]:
        shards, items = self._shards(pictures)
        scales = [self.guidance_scales[k % len(self.guidance_scales)] for k in range(self.num_images)]
        recipe: dict[str, Any] = {"generator": recipe_of(self.generator), "seed": self.seed}
        recipe |= {"num_images": self.num_images, "guidance_scales": self.guidance_scales}
        recipe |= {"image_seeds": recipe_of(self.image_seeds)}
        draws = Landing(Path(self.store), "draw", recipe, tables.DRAWS)

        def draw(shard: Shard, some: list[Picture]) -> Rows:
            return making.draw(some, self.generator, scales, self.image_seeds or keyed)

        def keyed(prompt_id: str, candidate: int) -> int:
            return seed_of(self.seed, "draw", prompt_id, candidate)

        drawing = Stage("draw", draws, shards, items, draw, self.generator)

        def ranking_by(name: str, reward: ImageReward) -> Stage:
            recipe = {"draw": draws.address, "image_reward": recipe_of(reward)}
            landing = Landing(Path(self.store), "rank", recipe, tables.RANKS)

            def rank(shard: Shard, some: list[Picture]) -> Rows:
                return making.rank(draws.gather(shard, _keys(some)), reward)

            return Stage(_label("rank", name), landing, shards, items, rank, reward)

        rewards, weights = _parts(self.image_reward)
        ranking = {name: ranking_by(name, reward) for name, reward in rewards.items()}
        recipe = {"draw": draws.address, "weights": weights}
        recipe |= {"ranks": {name: stage.landing.address for name, stage in ranking.items()}}
        best = Landing(Path(self.store), "pick", recipe, tables.IMAGES)

        def pick(shard: Shard, some: list[Picture]) -> Rows:
            keys = _keys(some)
            ranks = {name: stage.landing.gather(shard, keys) for name, stage in ranking.items()}
            return making.pick(draws.gather(shard, keys), ranks, weights)

        return drawing, ranking, Stage("pick", best, shards, items, pick)

    def _answer_stages(self, picking: Stage) -> list[Stage]:
        shards, items = self._shards(questions)
        described = [recipe_of(responder) for responder in self.responders]

        def answering(responder: Responder, description: Any, repeat: int) -> Stage:  # noqa: ANN401
            # A responder that is listed twice draws anew the second time.
            recipe = {"pick": picking.landing.address, "responder": description, "repeat": repeat}
            recipe |= {"seed": self.seed, "num_samples": self.num_samples, "greedy": self.greedy}
            landing = Landing(Path(self.store), "answer", recipe, tables.ANSWERS)
            key = digest([description, repeat])

            def answer(shard: Shard, some: list[Asked]) -> Rows:
                seeds = [
                    [seed_of(self.seed, key, one.id, sample) for sample in range(self.num_samples)] for one in some
                ]
                return making.answer(some, _images(picking, shard, some), responder, seeds, greedy=self.greedy)

            name = Path(str(getattr(responder, "model", ""))).name
            return Stage(_label("answer", name), landing, shards, items, answer, responder)

        return [
            answering(responder, description, described[:n].count(description))
            for n, (responder, description) in enumerate(zip(self.responders, described, strict=True))
        ]

    def _score_stages(self, picking: Stage, asking: list[Stage]) -> dict[str, Stage]:
        def scoring_by(name: str, reward: ResponseReward) -> Stage:
            recipe = {"answers": [stage.landing.address for stage in asking], "response_reward": recipe_of(reward)}
            landing = Landing(Path(self.store), "score", recipe, tables.SCORES)

            def score(shard: Shard, some: list[Asked]) -> Rows:
                answers = [stage.landing.gather(shard, _keys(some)) for stage in asking]
                return making.score(some, _images(picking, shard, some), answers, reward)

            return Stage(_label("score", name), landing, asking[0].shards, asking[0].items, score, reward)

        return {name: scoring_by(name, reward) for name, reward in _parts(self.response_reward)[0].items()}

    def _pair_stage(self, picking: Stage, scoring: dict[str, Stage]) -> Stage:
        weights = _parts(self.response_reward)[1]
        recipe: dict[str, Any] = {"scores": {name: stage.landing.address for name, stage in scoring.items()}}
        recipe |= {"weights": weights, "rule": recipe_of(self._rule), "seed": self.seed}
        recipe |= {"gates": [recipe_of(gate) for gate in [*self._response_gates, *self._pair_gates]]}
        landing = Landing(Path(self.store), "pair", recipe, tables.PAIRS)

        def pair(shard: Shard, some: list[Asked]) -> Rows:
            scored = {name: stage.landing.gather(shard, _keys(some)) for name, stage in scoring.items()}
            gates = self._response_gates, self._pair_gates
            return making.pair(some, _images(picking, shard, some), scored, weights, self._rule, *gates, self.seed)

        before = next(iter(scoring.values()))
        return Stage("pair", landing, before.shards, before.items, pair, at_once=True)

    def _shards(
        self, items_of: Callable[[Sequence[tables.PromptRow]], list[Item]]
    ) -> tuple[list[Shard], Callable[[Shard], list[Item]]]:
        """Cut the prompts into shards named by their items; say how to read the items of one."""
        contents = self.rows.numbers(lambda row: _content(items_of([row])))

        def items(shard: Shard) -> list[Item]:
            by_row = [items_of([row]) for row in shard.rows]
            # The rows are read from the file again, and must not land under the name of others.
            if digest([_content(some) for some in by_row]) != shard.digest:
                raise ValueError(f"{self.prompts} has changed since this run began: run again")
            return [item for some in by_row for item in some]

        return shards_by_id(self._hashes, contents, self.shard_size, self.rows.part), items

    @cached_property
    def _hashes(self) -> np.ndarray:
        return self.rows.numbers(lambda row: hash_of(row.id))

    @property
    def _rule(self) -> PairRule:
        return self.rule or BestWorst()

    @property
    def _response_gates(self) -> Sequence[ResponseGate]:
        return RESPONSE_GATES if self.response_gates is None else self.response_gates

    @property
    def _pair_gates(self) -> Sequence[PairGate]:
        return PAIR_GATES if self.pair_gates is None else self.pair_gates


def summary(num_pairs: int, dropped: Sequence[tuple[str, Drop]]) -> str:
    """Say in one line how many pairs there are and what was dropped for which reason."""
    counts = Counter(drop.reason for _, drop in dropped)
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
    return f"{num_pairs} pairs; dropped {counts.total()}" + (f" ({reasons})" if reasons else "")


def _keys(items: Sequence[Picture | Asked]) -> list[str]:
    return [item.key for item in items]


def _content(items: Sequence[Picture | Asked]) -> int:
    """Name what a row of the prompts holds."""
    return int(digest(_keys(items)), 16)


def _images(picking: Stage, shard: Shard, asked: Sequence[Asked]) -> dict[str, bytes]:
    """Read the best images that some questions of a shard are about, by key."""
    keys = list(dict.fromkeys(one.picture.key for one in asked))
    rows = picking.landing.gather(picking.shards[shard.number], keys, ["key", "image"])
    return {row["key"]: row["image"] for row in rows}


def _parts(reward: Any) -> tuple[dict[str, Any], dict[str, float]]:  # noqa: ANN401 - of images or of responses
    """Return the parts of a reward and their weights; one that is no mixture has a single part without a name."""
    if isinstance(reward, ImageMixture | ResponseMixture):
        return dict(reward.parts), dict(reward.weights or {})
    return {"": reward}, {"": 1.0}


def _label(stage: str, name: str) -> str:
    return f"{stage} ({name})" if name else stage
