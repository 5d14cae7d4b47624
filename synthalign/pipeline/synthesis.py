"""From prompts to pairs: draw, rank, answer, score, pair. The only file that knows the order.

Every stage walks the whole table before the next begins, so one large model is in memory at a time, and leaves a
landing on disk. A shard and the batches inside it are fixed by the rows, never by rank or by what is missing; every
draw is keyed by (seed, id, sample). So the table is the same on any number of ranks, killed or not.
"""

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from synthalign import tables
from synthalign.pairs import PAIR_GATES, RESPONSE_GATES, BestWorst, first_drop
from synthalign.store import (
    Landing,
    Shard,
    digest,
    recipe_of,
    seed_of,
    shards_of,
    sign_of_life,
    wait_for,
    write_atomically,
)
from synthalign.tables import PromptRow
from synthalign.types import (
    Drop,
    ImageGenerator,
    ImageRequest,
    ImageReward,
    PairGate,
    PairRule,
    PickedPair,
    Reply,
    Responder,
    ResponseGate,
    ResponseReward,
)

Rows = list[dict[str, Any]]


class Stage(NamedTuple):
    """One step of the journey: where it lands, its shards in order, and how one shard's rows are made."""

    landing: Landing
    shards: list[Shard]
    make: Callable[[Shard], Rows]
    parts: tuple[Any, ...]  # released when the stage is over


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Makes preference pairs out of prompts, with nobody labelling anything.

    Source: Synth-Align (arXiv 2412.17417); its defaults are four images a prompt at guidance 5, 7, 9 and 11.

    Args:
        prompts: Prompts file: a line of JSON each, {"id", "prompt", "question"} or, for several questions about one
            image, {"id", "prompt", "questions": [...]}.
        store: Folder of the landings; it may be shared by runs, which then share what they have in common.
        generator: Draws the candidate images.
        image_reward: Picks the best image of each prompt.
        responders: Answer the questions about it, one after the other.
        response_reward: Scores the responses.
        rule: Picks chosen and rejected among a question's scored responses; best against worst by default.
        response_gates: Keep unfit responses from the rule: Empty, Echo and ForeignScript by default.
        pair_gates: Refuse unfit pairs: Identical and TooClose by default.
        num_images: Candidate images per prompt.
        guidance_scales: Of the candidates, in turn.
        num_samples: Responses per responder and question.
        greedy: Take each responder's greedy response instead of samples; num_samples must be 1 then.
        shard_size: Prompts per shard: what is computed, and lost when the process dies, at once.
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
        with sign_of_life(last.landing.folder, rank):
            for stage in self.stages:
                self._walk(stage, rank, world_size)

            def missing() -> list[tuple[int, str]]:
                return [(s.number % world_size, s.name) for s in last.shards if not last.landing.has(s)]

            wait_for(missing, last.landing.folder)
        # Every rank writes the same, so that none has to wait for another to do so.
        write_atomically(self.table, json.dumps([shard.name for shard in last.shards], indent=1).encode())
        return self.table

    @property
    def table(self) -> Path:
        """Where the table of the pairs is, or will be: a file that names its shards in order."""
        last = self.stages[-1]
        return last.landing.folder / (digest([shard.name for shard in last.shards]) + tables.TABLE_SUFFIX)

    @cached_property
    def rows(self) -> list[PromptRow]:
        """The prompts file."""
        return tables.read_prompts(Path(self.prompts))

    @cached_property
    def stages(self) -> list[Stage]:
        """The whole journey; nothing is loaded or computed yet."""
        store = Path(self.store)
        pictured = shards_of([(row.id, row.prompt) for row in self.rows], self.shard_size)
        asked = shards_of(self.rows, self.shard_size)

        recipe: dict[str, Any] = {"generator": recipe_of(self.generator), "seed": self.seed}
        recipe |= {"num_images": self.num_images, "guidance_scales": self.guidance_scales}
        draws = Landing(store, "draw", recipe, tables.DRAWS)
        recipe = {"draw": draws.address, "image_reward": recipe_of(self.image_reward)}
        ranks = Landing(store, "rank", recipe, tables.RANKS)

        described = [recipe_of(responder) for responder in self.responders]
        answers = []
        for n, responder in enumerate(described):
            # A responder that is listed twice draws anew the second time.
            recipe = {"rank": ranks.address, "responder": responder, "repeat": described[:n].count(responder)}
            recipe |= {"seed": self.seed, "num_samples": self.num_samples, "greedy": self.greedy}
            answers.append(Landing(store, "answer", recipe, tables.ANSWERS))
        recipe = {"answers": [landing.address for landing in answers]}
        recipe |= {"response_reward": recipe_of(self.response_reward)}
        scores = Landing(store, "score", recipe, tables.SCORES)
        recipe = {"score": scores.address, "rule": recipe_of(self._rule)}
        recipe |= {"gates": [recipe_of(gate) for gate in [*self._response_gates, *self._pair_gates]]}
        pairs = Landing(store, "pair", recipe, tables.PAIRS)

        def best_images(shard: Shard) -> dict[str, bytes]:
            same = pictured[shard.number]
            best = {row["id"]: row["best"] for row in ranks.read(same, ["id", "best"])}
            rows = draws.read(same, ["id", "candidates"])
            return {row["id"]: row["candidates"][best[row["id"]]]["image"] for row in rows}

        def draw(shard: Shard) -> Rows:
            return self._draw(shard.rows)

        def rank(shard: Shard) -> Rows:
            return self._rank(draws.read(shard))

        def answering(responder: Responder, landing: Landing) -> Callable[[Shard], Rows]:
            key = digest([landing.recipe["responder"], landing.recipe["repeat"]])
            return lambda shard: self._answer(shard.rows, best_images(shard), responder, key)

        def score(shard: Shard) -> Rows:
            return self._score(shard.rows, best_images(shard), [landing.read(shard) for landing in answers])

        def pair(shard: Shard) -> Rows:
            return self._pair(shard.rows, best_images(shard), scores.read(shard))

        return [
            Stage(draws, pictured, draw, (self.generator,)),
            Stage(ranks, pictured, rank, (self.image_reward,)),
            *(
                Stage(landing, asked, answering(responder, landing), (responder,))
                for responder, landing in zip(self.responders, answers, strict=True)
            ),
            Stage(scores, asked, score, (self.response_reward,)),
            Stage(pairs, asked, pair, ()),
        ]

    def _walk(self, stage: Stage, rank: int, world_size: int) -> None:
        own = stage.shards[rank::world_size]
        todo = [shard for shard in own if not stage.landing.has(shard)]
        if not todo:
            return
        done = sum(len(shard.rows) for shard in own) - sum(len(shard.rows) for shard in todo)
        with tqdm(
            total=sum(len(shard.rows) for shard in own),
            initial=done,
            desc=f"{stage.landing.recipe['stage']:>6}",
            unit="prompt",
            disable=rank != 0,
        ) as bar:
            for shard in todo:
                stage.landing.write(shard, stage.make(shard))
                bar.update(len(shard.rows))
        for part in stage.parts:
            part.release()

    def _draw(self, rows: Sequence[tuple[str, str]]) -> Rows:
        scales = [self.guidance_scales[k % len(self.guidance_scales)] for k in range(self.num_images)]
        # Candidate by candidate, so that requests of one guidance scale stand together.
        requests = [
            ImageRequest(prompt, seed_of(self.seed, "draw", row_id, k), scale)
            for k, scale in enumerate(scales)
            for row_id, prompt in rows
        ]
        images = _as_many(self.generator, self.generator.generate(requests), requests)
        drawn = [
            {"seed": request.seed, "guidance_scale": request.guidance_scale, "image": _png(image)}
            for request, image in zip(requests, images, strict=True)
        ]
        return [
            {"id": row_id, "prompt": prompt, "candidates": drawn[position :: len(rows)]}
            for position, (row_id, prompt) in enumerate(rows)
        ]

    def _rank(self, draws: Rows) -> Rows:
        prompts = [row["prompt"] for row in draws for _ in row["candidates"]]
        images = [_image(candidate["image"]) for row in draws for candidate in row["candidates"]]
        scores = _as_many(self.image_reward, self.image_reward.score(prompts, images).tolist(), images)
        ranked = []
        for row in draws:
            own, scores = scores[: len(row["candidates"])], scores[len(row["candidates"]) :]
            scored = [k for k, score in enumerate(own) if math.isfinite(score)]
            if not scored:
                name = type(self.image_reward).__name__
                raise ValueError(
                    f"{name} gives no image of {row['id']!r} a finite score: {own}; is its dtype too small?"
                )
            ranked.append({"id": row["id"], "scores": own, "best": max(scored, key=own.__getitem__)})
        return ranked

    def _answer(self, rows: Sequence[PromptRow], images: dict[str, bytes], responder: Responder, key: str) -> Rows:
        asked = [(row.id, f"{row.id}/{q}", question) for row in rows for q, question in enumerate(row.questions)]
        flat = [(row, sample) for row in asked for sample in range(self.num_samples)]
        pictures = {row.id: _image(images[row.id]) for row in rows}
        seeds = [seed_of(self.seed, key, question_id, sample) for (_, question_id, _), sample in flat]
        replies = responder.respond(
            [pictures[image_id] for (image_id, _, _), _ in flat],
            [question for (_, _, question), _ in flat],
            None if self.greedy else seeds,
        )
        _as_many(responder, replies, flat)
        said = [{"text": one.text, "truncated": one.truncated} for one in replies]
        name = Path(str(getattr(responder, "model", type(responder).__name__))).name
        return [
            {
                "id": question_id,
                "image_id": image_id,
                "question": question,
                "responder": name,
                "responses": said[n * self.num_samples : (n + 1) * self.num_samples],
            }
            for n, (image_id, question_id, question) in enumerate(asked)
        ]

    def _score(self, rows: Sequence[PromptRow], images: dict[str, bytes], answers: list[Rows]) -> Rows:
        by_id: dict[str, dict[str, Any]] = {}
        for row in (row for table in answers for row in table):
            entry = by_id.setdefault(
                row["id"], {key: row[key] for key in ("id", "image_id", "question")} | {"candidates": []}
            )
            entry["candidates"] += [
                {"responder": row["responder"], **response, "score": None} for response in row["responses"]
            ]
        prompts = {row.id: row.prompt for row in rows}
        pictures = {row.id: _image(images[row.id]) for row in rows}
        fit = [(row, one) for row in by_id.values() for one in row["candidates"] if one["text"].strip()]
        if fit:
            scores = self.response_reward.score(
                [prompts[row["image_id"]] for row, _ in fit],
                [pictures[row["image_id"]] for row, _ in fit],
                [row["question"] for row, _ in fit],
                [one["text"] for _, one in fit],
            ).tolist()
            _as_many(self.response_reward, scores, fit)
            for (_, one), score in zip(fit, scores, strict=True):
                one["score"] = score if math.isfinite(score) else None
        return list(by_id.values())

    def _pair(self, rows: Sequence[PromptRow], images: dict[str, bytes], scored: Rows) -> Rows:
        prompts = {row.id: row.prompt for row in rows}
        pairs = []
        for row in scored:
            refused, fit = [], []
            for one in row["candidates"]:
                drop = first_drop(self._response_gates, row["question"], Reply(one["text"], one["truncated"]))
                if drop is None and one["score"] is None:
                    drop = Drop("unscored", "the reward model gave no finite score" if one["text"].strip() else "empty")
                if drop is None:
                    fit.append(one)
                else:
                    refused.append({"text": one["text"], **drop._asdict()})
            pair = {key: row[key] for key in ("id", "image_id", "question")}
            pair |= {"prompt": prompts[row["image_id"]], "refused": refused}
            outcome = self._pick(row["id"], row["question"], fit)
            if isinstance(outcome, Drop):
                pair |= {"dropped": outcome.reason, "detail": outcome.detail}
            else:
                for side, one in zip(("chosen", "rejected"), outcome, strict=True):
                    pair |= {side: one["text"], f"{side}_score": one["score"], f"{side}_responder": one["responder"]}
                pair["image"] = {"bytes": images[row["image_id"]], "path": None}
            pairs.append(pair)
        return pairs

    def _pick(self, question_id: str, question: str, fit: Rows) -> tuple[dict[str, Any], dict[str, Any]] | Drop:
        if len(fit) < 2:
            return Drop("too_few_responses", f"{len(fit)} fit to be compared")
        picked = self._rule([one["score"] for one in fit], seed_of(self.seed, "pair", question_id))
        if picked is None:
            return Drop("no_preference", f"the rule finds no pair among {len(fit)} responses")
        chosen, rejected = (fit[position] for position in picked)
        margin = chosen["score"] - rejected["score"]
        pair = PickedPair(question, chosen["text"], rejected["text"], margin)
        return first_drop(self._pair_gates, pair) or (chosen, rejected)

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


def _as_many(part: Any, results: list[Any], inputs: Sequence[Any]) -> list[Any]:  # noqa: ANN401
    """Return a part's results, if there are as many as inputs."""
    if len(results) != len(inputs):
        raise ValueError(f"{type(part).__name__} gave {len(results)} results for {len(inputs)} inputs")
    return results


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")
