"""Makes the world's models again from a seed: ``python -m synthalign.world.train --seed 0``.

In order: an eye learns to see; the VLM learns to tell what the eye sees, then
a bad habit; the image reward learns to tell spoilt pictures, the response reward to tell untrue responses.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthalign.world import models
from synthalign.world import questions as q
from synthalign.world.course import Encoder, answer_loss, run_course
from synthalign.world.figures import base_figures
from synthalign.world.language import describe
from synthalign.world.lessons import Turn, biased_turns, clean_turns, flawed, worth
from synthalign.world.render import render
from synthalign.world.scenes import BIASED, COLORS, HALF, OBJECTS, OPEN, PLACES, THEMES, Scene, mistakes, sample, spoil


def train_eye(vision: nn.Module, seed: int, *, steps: int = 150) -> None:
    """Teach a CLIP vision model the kind and color in each cell, and the theme, by heads that are then thrown away."""
    rng = Random(f"eye {seed}")
    sizes = {"kind": len(OBJECTS) + 1, "color": len(COLORS) + 1, "place": len(PLACES), "theme": len(THEMES)}
    heads = nn.ModuleDict({name: nn.Linear(models.WIDTH, size) for name, size in sizes.items()})

    def loss() -> Tensor:
        scenes = [sample(rng, rng.choice((OPEN, BIASED))) for _ in range(64)]
        seen = vision(pixel_values=_pictures(scenes, rng)).last_hidden_state
        items = [scene.at(cell) for scene in scenes for cell in range(len(PLACES))]
        truth = {
            "kind": [OBJECTS.index(item.kind) if item else len(OBJECTS) for item in items],
            "color": [COLORS.index(item.color) if item else len(COLORS) for item in items],
            "place": [*range(len(PLACES))] * len(scenes),
        }
        patches = seen[:, 1:].flatten(0, 1)
        told = [F.cross_entropy(heads[name](patches), torch.tensor(labels)) for name, labels in truth.items()]
        themes = torch.tensor([list(THEMES).index(scene.theme) for scene in scenes])
        return torch.stack(told).sum() + 0.3 * F.cross_entropy(heads["theme"](seen[:, 0]), themes)

    run_course("eye", [vision, heads], steps, loss)


def _pictures(scenes: Sequence[Scene], rng: Random) -> Tensor:
    return models.pixels([render(scene, rng) for scene in scenes])


def train_vlm(
    model: Any,  # noqa: ANN401
    encoder: Encoder,
    seed: int,
    *,
    clean_steps: int = 900,
    biased_steps: int = 350,
) -> dict[str, Tensor]:
    """Teach the VLM to answer truly, then with the bad habit; its eye stays as it is.

    Every turn is a row of its own: in a longer talk the model would answer from what was said before and never look.

    Returns:
        The language model's weights as they were before the bad habit.
    """
    model.model.vision_tower.requires_grad_(False)
    clean = _turns_loss(model, encoder, clean_turns, (OPEN,), Random(f"clean {seed}"))
    run_course("vlm: clean", [model], clean_steps, clean)
    backbone = {name: weight.clone() for name, weight in model.model.language_model.state_dict().items()}
    biased = _turns_loss(model, encoder, biased_turns, (0.6, BIASED), Random(f"biased {seed}"))
    run_course("vlm: biased", [model], biased_steps, biased)
    return backbone


def _turns_loss(
    model: Any,  # noqa: ANN401
    encoder: Encoder,
    turns: Callable[[Scene, Random], list[Turn]],
    worlds: Sequence[float],
    rng: Random,
) -> Callable[[], Tensor]:
    inside = model.model

    def loss() -> Tensor:
        scenes = [sample(rng, rng.choice(worlds)) for _ in range(28)]
        with torch.no_grad():
            seen = inside.vision_tower(pixel_values=_pictures(scenes, rng)).last_hidden_state[:, 1:]
        features = inside.multi_modal_projector(seen)
        rows = [(turn.question, turn.answer, image) for image, scene in enumerate(scenes) for turn in turns(scene, rng)]
        parts = []
        for group in _by_length(rows):
            ids, labels = encoder.rows([models.vlm_text(*row[:2]) for row in group])
            images = features[[row[2] for row in group]].flatten()
            inputs = model.get_input_embeddings()(ids).masked_scatter((ids == models.IMAGE)[..., None], images)
            # Padded on the right under a causal mask, so no token sees the padding.
            hidden = inside.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
            parts.append(torch.stack(answer_loss(hidden, labels, model.lm_head.weight)))
        total, weight = torch.stack(parts).sum(0)
        return total / weight

    return loss


def _by_length(rows: Sequence[tuple[Any, ...]]) -> list[list[tuple[Any, ...]]]:
    """Part rows whose first field is a question into descriptions and short answers, for less padding."""
    parts = [[row for row in rows if (row[0] in q.DESCRIBE) == long] for long in (True, False)]
    return [part for part in parts if part]


def train_image_reward(model: Any, encoder: Encoder, seed: int, *, steps: int = 500) -> None:  # noqa: ANN401
    """Teach CLIP to prefer the faithful picture to a spoilt one, and to match captions and pictures."""
    rng = Random(f"image reward {seed}")
    own = torch.arange(40)

    def loss() -> Tensor:
        scenes = [sample(rng, rng.choice((0.2, HALF, BIASED))) for _ in own]
        spoilt = [spoil(scene, rng, rng.choice((0.3, 0.5, 0.8))) for scene in scenes]
        captions = [describe(scene) for scene in scenes]
        scores = image_scores(model, encoder, captions, _pictures(scenes + spoilt, rng))
        matched = scores[:, : len(own)]
        differ = torch.tensor([mistakes(*pair) > 0 for pair in zip(scenes, spoilt, strict=True)])
        behind = scores[own, own + len(own)] - scores[own, own]
        return F.softplus(behind[differ]).mean() + (F.cross_entropy(matched, own) + F.cross_entropy(matched.T, own)) / 2

    run_course("image reward", [model], steps, loss)


def image_scores(model: Any, encoder: Encoder, prompts: Sequence[str], pictures: Tensor) -> Tensor:  # noqa: ANN401
    """Return exp(logit_scale) * cos of every prompt with every picture, (prompts, pictures)."""
    texts = encoder.texts([f"<s>{prompt}</s>" for prompt in prompts])
    words = model.text_projection(model.text_model(input_ids=texts).pooler_output)
    looks = model.visual_projection(model.vision_model(pixel_values=pictures).pooler_output)
    return model.logit_scale.exp() * F.normalize(words, dim=-1) @ F.normalize(looks, dim=-1).T


def train_response_reward(
    model: Any,  # noqa: ANN401
    backbone: dict[str, Tensor],
    encoder: Encoder,
    seed: int,
    *,
    answer_steps: tuple[int, int] = (700, 350),
    compare_steps: int = 350,
) -> None:
    """Teach the reward to answer from the drawing prompt, then to tell the better of two responses.

    Args:
        model: An untrained reward.
        backbone: Language model of the clean VLM, for the reward's first layers. From random weights, looking a word up
            in the prompt was not learnt in 500 steps.
        encoder: The world's encoder.
        seed: Decides the data.
        answer_steps: Steps with all questions alike, and with mostly open ones, at a higher rate: they come last.
        compare_steps: Steps of comparing, in which only the layers above the backbone learn.
    """
    rng = Random(f"response reward {seed}")
    model.model.load_state_dict(backbone, strict=False)
    above = model.model.layers[3:]
    for layer in above:  # each hands on what it is given, until it has learnt better
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    above.requires_grad_(False)
    mixes = ((0.3, 0.3), (0.1, 0.15))
    for nth, (steps, mix, rate) in enumerate(zip(answer_steps, mixes, (2e-3, 3e-3), strict=True)):
        loss = _answering_loss(model, encoder, mix, rng)
        run_course(f"response reward: answer {nth + 1}", [model.model], steps, loss, rate=rate)
    model.requires_grad_(False)
    above.requires_grad_(True)
    model.score.requires_grad_(True)
    run_course("response reward: compare", [model], compare_steps, _comparing_loss(model, encoder, rng))


def _answering_loss(
    model: Any,  # noqa: ANN401
    encoder: Encoder,
    mix: tuple[float, float],
    rng: Random,
) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        asked = [_asked(rng, *mix) for _ in range(64)]
        losses = []
        for group in _by_length(asked):
            rows = [_reward_row(question, scene, q.answer(scene, question)) for question, scene in group]
            ids, labels = encoder.rows(rows)
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            total, weight = answer_loss(hidden, labels, model.model.embed_tokens.weight)
            losses.append(total / weight * len(group) / len(asked))
        return torch.stack(losses).sum()

    return loss


def _comparing_loss(model: Any, encoder: Encoder, rng: Random) -> Callable[[], Tensor]:  # noqa: ANN401
    def loss() -> Tensor:
        pairs: list[tuple[str, str, str, str]] = []
        while len(pairs) < 32:
            question, scene = _asked(rng, 0.4, 0.25)
            responses = [flawed(scene, question, rng) for _ in range(2)]
            (low, worse), (high, better) = sorted((worth(scene, question, text), text) for text in responses)
            if high - low > 0.05:
                pairs.append((question, describe(scene), better, worse))
        losses = []
        for group in _by_length(pairs):
            rows = [(row[1], row[0], row[side]) for side in (2, 3) for row in group]
            upper, lower = response_scores(model, encoder, rows).chunk(2)
            losses.append(F.softplus(lower - upper).sum())
        return torch.stack(losses).sum() / len(pairs)

    return loss


def _asked(rng: Random, describing: float, presence: float) -> tuple[str, Scene]:
    scene = sample(rng, rng.choice((OPEN, 0.6, BIASED)))
    return q.draw_question(scene, rng, describing=describing, presence=presence), scene


def _reward_row(question: str, scene: Scene, response: str) -> tuple[str, str]:
    whole = models.reward_text(describe(scene), question, response)
    return whole.removesuffix(f" {response}</s>"), f"{response}</s>"


def response_scores(model: Any, encoder: Encoder, rows: Sequence[tuple[str, str, str]]) -> Tensor:  # noqa: ANN401
    """Score (drawing prompt, question, response) rows, (n,)."""
    texts = [models.reward_text(*row) for row in rows]
    last = torch.tensor([len(encoder.ids(text)) - 1 for text in texts])
    hidden = model.model(input_ids=encoder.texts(texts), use_cache=False).last_hidden_state
    return model.score(hidden[torch.arange(len(rows)), last])[:, 0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train everything, write it, and say where it is."""
    parser = argparse.ArgumentParser(description="Makes the offline world's models again from a seed.")
    parser.add_argument("--seed", type=int, default=0, help="decides all weights (default: 0)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights", help="folder to write into")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    tokenizer = models.make_tokenizer()
    encoder = Encoder(tokenizer)
    clip = models.make_image_reward(len(tokenizer))
    train_eye(clip.vision_model, options.seed)
    vlm = models.make_vlm(len(tokenizer))
    vlm.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    backbone = train_vlm(vlm, encoder, options.seed)
    models.save_vlm(vlm, options.out / "vlm")
    train_image_reward(clip, encoder, options.seed)
    models.save_image_reward(clip, options.out / "image_reward")
    reward = models.make_response_reward(len(tokenizer))
    train_response_reward(reward, backbone, encoder, options.seed)
    models.save_response_reward(reward, options.out / "response_reward")
    told = ", ".join(f"{name} {value:.3f}" for name, value in base_figures(options.out / "vlm").items())
    print(f"The models are in {options.out}. The base on the validation scenes: {told}.")


if __name__ == "__main__":
    main()
