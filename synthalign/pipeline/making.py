"""How each stage makes its rows: pictures and questions in, the columns of ``tables`` out.

Everything that is drawn is keyed by (seed, id, sample), so rows can be made together or apart.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from synthalign.pairs import first_drop
from synthalign.pipeline.items import Asked, Picture
from synthalign.rewards.mixture import combine
from synthalign.store import seed_of
from synthalign.types import (
    Drop,
    ImageGenerator,
    ImageRequest,
    ImageReward,
    ImageSeeds,
    PairGate,
    PairRule,
    PickedPair,
    Reply,
    Responder,
    ResponseGate,
    ResponseReward,
)

Rows = list[dict[str, Any]]


def draw(
    pictures: Sequence[Picture], generator: ImageGenerator, guidance_scales: Sequence[float], seeds: ImageSeeds
) -> Rows:
    """Draw one candidate of each picture at each guidance scale."""
    # Candidate by candidate, so that requests of one guidance scale stand together.
    requests = [
        ImageRequest(picture.prompt, seeds(picture.id, k), scale)
        for k, scale in enumerate(guidance_scales)
        for picture in pictures
    ]
    images = _as_many(generator, generator.generate(requests), len(requests))
    drawn = [
        {"seed": request.seed, "guidance_scale": request.guidance_scale, "image": _png(image)}
        for request, image in zip(requests, images, strict=True)
    ]
    return [
        {**picture._asdict(), "candidates": drawn[position :: len(pictures)]}
        for position, picture in enumerate(pictures)
    ]


def rank(draws: Rows, reward: ImageReward) -> Rows:
    """Score the candidates of each picture."""
    prompts = [row["prompt"] for row in draws for _ in row["candidates"]]
    images = [_image(candidate["image"]) for row in draws for candidate in row["candidates"]]
    scores = _numbers(reward, reward.score(prompts, images), len(images))
    ranked = []
    for row in draws:
        own, scores = scores[: len(row["candidates"])], scores[len(row["candidates"]) :]
        ranked.append({"key": row["key"], "id": row["id"], "scores": own})
    return ranked


def pick(draws: Rows, ranks: Mapping[str, Rows], weights: Mapping[str, float]) -> Rows:
    """Keep the best candidate of each picture.

    Args:
        draws: The candidates.
        ranks: Their scores, the same pictures in the same order, by part of the reward.
        weights: Of the parts.

    Raises:
        ValueError: No candidate of a picture has a finite score.
    """
    picked = []
    for position, row in enumerate(draws):
        by_part = {name: rows[position]["scores"] for name, rows in ranks.items()}
        scores = combine(weights, by_part)
        scored = [(score, -k) for k, score in enumerate(scores) if score is not None]
        if not scored:
            raise ValueError(
                f"no image of {row['id']!r} has a finite score: {by_part}; is the reward's dtype too small?"
            )
        best = -max(scored)[1]
        image = row["candidates"][best]["image"]
        picked.append(
            {key: row[key] for key in ("key", "id", "prompt")} | {"image": image, "best": best, "scores": scores}
        )
    return picked


def answer(
    asked: Sequence[Asked],
    images: Mapping[str, bytes],
    responder: Responder,
    sample_seeds: Sequence[Sequence[int]],
    *,
    greedy: bool,
) -> Rows:
    """Let a responder answer each question once for each of its seeds.

    Args:
        asked: The questions.
        images: By the key of the picture.
        responder: Answers.
        sample_seeds: For each question, one seed per response.
        greedy: Whether seeds are left out.
    """
    opened = {key: _image(content) for key, content in images.items()}
    flat = [(one, seed) for one, seeds in zip(asked, sample_seeds, strict=True) for seed in seeds]
    replies = responder.respond(
        [opened[one.picture.key] for one, _ in flat],
        [one.question for one, _ in flat],
        None if greedy else [seed for _, seed in flat],
    )
    _as_many(responder, replies, len(flat))
    said = iter({"text": reply.text, "truncated": reply.truncated} for reply in replies)
    name = Path(str(getattr(responder, "model", type(responder).__name__))).name
    return [
        {**_question(one), "responder": name, "responses": [next(said) for _ in seeds]}
        for one, seeds in zip(asked, sample_seeds, strict=True)
    ]


def score(asked: Sequence[Asked], images: Mapping[str, bytes], answers: Sequence[Rows], reward: ResponseReward) -> Rows:
    """Score every response to each question; an empty one has no score.

    Args:
        asked: The questions.
        images: By the key of the picture.
        answers: Of each responder, to these questions in this order.
        reward: Gives the scores.
    """
    opened = {key: _image(content) for key, content in images.items()}
    candidates: list[Rows] = [
        [{"responder": row["responder"], **response, "score": None} for row in rows for response in row["responses"]]
        for rows in zip(*answers, strict=True)
    ]
    fit = [
        (one, candidate)
        for one, own in zip(asked, candidates, strict=True)
        for candidate in own
        if candidate["text"].strip()
    ]
    if fit:
        scores = reward.score(
            [one.picture.prompt for one, _ in fit],
            [opened[one.picture.key] for one, _ in fit],
            [one.question for one, _ in fit],
            [candidate["text"] for _, candidate in fit],
        )
        for (_, candidate), number in zip(fit, _numbers(reward, scores, len(fit)), strict=True):
            candidate["score"] = number
    return [{**_question(one), "candidates": own} for one, own in zip(asked, candidates, strict=True)]


def pair(
    asked: Sequence[Asked],
    images: Mapping[str, bytes],
    scored: Mapping[str, Rows],
    weights: Mapping[str, float],
    rule: PairRule,
    response_gates: Sequence[ResponseGate],
    pair_gates: Sequence[PairGate],
    seed: int,
) -> Rows:
    """Pick a pair for each question, or say why there is none.

    Args:
        asked: The questions.
        images: By the key of the picture.
        scored: The candidates, to these questions in this order, by part of the reward.
        weights: Of the parts.
        rule: Picks.
        response_gates: Keep unfit responses from the rule.
        pair_gates: Refuse unfit pairs.
        seed: Of what the rule draws.
    """
    pairs = []
    for position, one in enumerate(asked):
        candidates = _combined({name: rows[position]["candidates"] for name, rows in scored.items()}, weights)
        for candidate in candidates:
            if refusal := _refusal(one, candidate, response_gates):
                candidate |= {"refused": refusal.reason, "detail": refusal.detail}
        row: dict[str, Any] = {"id": one.id, "image_id": one.picture.id, "image_key": one.picture.key}
        row |= {"prompt": one.picture.prompt, "question": one.question, "candidates": candidates}
        picked = _picked(one, candidates, rule, seed)
        if isinstance(picked, Drop):
            drop: Drop | None = picked
        else:
            drop = _objection(one, candidates, picked, pair_gates)
            row["picked"] = list(picked)
        if drop is not None:
            row |= {"dropped": drop.reason, "detail": drop.detail}
        else:
            for side, place in zip(("chosen", "rejected"), row["picked"], strict=True):
                said = candidates[place]
                row |= {side: said["text"], f"{side}_score": said["score"], f"{side}_responder": said["responder"]}
            row["image"] = {"bytes": images[one.picture.key], "path": None}
        pairs.append(row)
    return pairs


def _combined(by_part: Mapping[str, Rows], weights: Mapping[str, float]) -> Rows:
    """Put the parts' scores of one question's candidates together."""
    parts = {name: [candidate["score"] for candidate in own] for name, own in by_part.items()}
    totals = combine(weights, parts)
    named = [name for name in parts if name]  # a reward that is no mixture has no name
    return [
        {
            **candidate,
            "score": totals[k],
            "scores": [{"reward": name, "score": parts[name][k]} for name in named],
            "refused": None,
            "detail": None,
        }
        for k, candidate in enumerate(next(iter(by_part.values())))
    ]


def _refusal(one: Asked, candidate: dict[str, Any], gates: Sequence[ResponseGate]) -> Drop | None:
    """Say why the rule is not to see a candidate, or None."""
    if drop := first_drop(gates, one.question, Reply(candidate["text"], candidate["truncated"])):
        return drop
    if candidate["score"] is not None:
        return None
    written = bool(candidate["text"].strip())
    return Drop("unscored", "the reward model gave no finite score" if written else "empty")


def _picked(one: Asked, candidates: Rows, rule: PairRule, seed: int) -> tuple[int, int] | Drop:
    """Let the rule pick among the candidates that no gate refused; return the places of the two."""
    fit = [place for place, candidate in enumerate(candidates) if candidate["refused"] is None]
    if len(fit) < 2:
        return Drop("too_few_responses", f"{len(fit)} fit to be compared")
    picked = rule([candidates[place]["score"] for place in fit], seed_of(seed, "pair", one.id))
    if picked is None:
        return Drop("no_preference", f"the rule finds no pair among {len(fit)} responses")
    return fit[picked[0]], fit[picked[1]]


def _objection(one: Asked, candidates: Rows, picked: tuple[int, int], gates: Sequence[PairGate]) -> Drop | None:
    """Ask the gates about the pair that was picked."""
    chosen, rejected = (candidates[place] for place in picked)
    margins = {
        better["reward"]: _difference(better["score"], worse["score"])
        for better, worse in zip(chosen["scores"], rejected["scores"], strict=True)
    }
    margin = chosen["score"] - rejected["score"]
    return first_drop(gates, PickedPair(one.question, chosen["text"], rejected["text"], margin, margins))


def _difference(better: float | None, worse: float | None) -> float:
    """Return the margin, nan where a witness gave no finite number: gates that ask for it refuse that."""
    return math.nan if better is None or worse is None else better - worse


def _question(one: Asked) -> dict[str, Any]:
    return {"key": one.key, "id": one.id, "image_id": one.picture.id, "question": one.question}


def _numbers(part: Any, scores: Tensor, count: int) -> list[float | None]:  # noqa: ANN401
    """Return a reward's scores, None for those that are no finite numbers."""
    if scores.shape != (count,):
        raise ValueError(f"{type(part).__name__} gave scores of shape {tuple(scores.shape)} for {count} inputs")
    return [number if math.isfinite(number) else None for number in scores.tolist()]


def _as_many(part: Any, results: list[Any], count: int) -> list[Any]:  # noqa: ANN401
    """Return a part's results, if there are as many as inputs."""
    if len(results) != count:
        raise ValueError(f"{type(part).__name__} gave {len(results)} results for {count} inputs")
    return results


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")
