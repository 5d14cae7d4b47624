"""How a batch lies before the model: plain rows, or prefixes once with their continuations behind them.

B pairs; sequence 2i is the chosen response of pair i, 2i + 1 its rejected one. N scored tokens, S tokens of a row.
The last token of a response is scored, but never enters the model where rows are packed.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from synthalign.dpo import families
from synthalign.dpo.attention import Packed, Run
from synthalign.dpo.batch import PreferenceBatch
from synthalign.vlm.families import base_of, blocks, decoder_of, image_token_of

VERSION = 1
"""Of what layouts compute; log-probs kept on disk are of one version."""


class Laid(NamedTuple):
    """A batch as the model takes it."""

    inputs: dict[str, Tensor]  # all but the images
    image_order: list[int]  # the batch's images as they come in the rows
    scored: Tensor  # (N,) places of the states to score, in all rows one behind the other
    targets: Tensor  # (N,) the tokens that those states predict
    lengths: list[int]  # of the 2B sequences, scored tokens
    packed: Packed | None  # who sees whom; None where the model itself knows


class Layout(Protocol):
    """A way to lay out a batch."""

    def __call__(self, network: Any, batch: PreferenceBatch) -> Laid:  # noqa: ANN401
        """Lay a batch out, on the model's device."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Every response in a row of its own, behind its whole prompt: 2B rows padded on the right, as a model knows them.

    The readable reference, and what any model can carry.
    """

    def __call__(self, network: Any, batch: PreferenceBatch) -> Laid:  # noqa: ANN401
        """Lay a batch out."""
        sides = _sides(batch)
        prompts = [prompt for prompt in batch.prompts for _ in range(2)]
        rows = [_row(prompt, side) for prompt, side in zip(prompts, sides, strict=True)]
        inputs = {key: pad_sequence([row[key] for row in rows], batch_first=True) for key in rows[0]}
        size = inputs["input_ids"].shape[1]
        order = [place for place in batch.image_of for _ in range(2)]
        grids = batch.images.get("image_grid_thw")
        if grids is not None:  # Qwen-VL counts its positions by them
            inputs["image_grid_thw"] = grids[order]
        starts = [row * size + len(prompt["input_ids"]) - 1 for row, prompt in enumerate(prompts)]
        scored = [torch.arange(start, start + len(side)) for start, side in zip(starts, sides, strict=True)]
        return _laid(network, inputs, order, scored, sides, None)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Each prompt once, its two responses behind it, all pairs in one row without padding."""

    def __call__(self, network: Any, batch: PreferenceBatch) -> Laid:  # noqa: ANN401
        """Lay a batch out."""
        row = _PackedRow(network, batch)
        for pair in range(len(batch)):
            row.add_pair(pair)
        return row.laid()


@dataclass(frozen=True, kw_only=True)
class Trie:
    """Each image once, behind it the questions about it, behind each question its two responses; one row.

    Pays where pairs of a batch share an image, which the batches then see to; otherwise it is a Tree.
    """

    shares_images: ClassVar[bool] = True

    def __call__(self, network: Any, batch: PreferenceBatch) -> Laid:  # noqa: ANN401
        """Lay a batch out."""
        row = _PackedRow(network, batch)
        about: dict[int, list[int]] = {}
        for pair, image in enumerate(batch.image_of):
            about.setdefault(image, []).append(pair)
        for pairs in about.values():
            row.add_pairs(pairs)
        return row.laid()


class _PackedRow:
    """A row that grows by pairs."""

    def __init__(self, network: Any, batch: PreferenceBatch) -> None:  # noqa: ANN401
        families.check_packable(network, batch)
        self.network, self.batch = network, batch
        self.ids: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.blocks: list[Tensor] = []
        self.runs: list[Run] = []
        self.order: list[int] = []
        self.scored: dict[int, list[Tensor]] = {}
        self.of_pairs: dict[int, tuple[Tensor, Tensor]] = {}  # positions and blocks of prompt and longer response
        self.size = 0

    def add_pairs(self, pairs: list[int]) -> None:
        """Append pairs about one image: once what their prompts share, then what each has of its own."""
        shared = self._shared(pairs)
        if not shared:
            for pair in pairs:
                self.add_pair(pair)
            return
        trunk = self._append(pairs[0], self.batch.prompts[pairs[0]]["input_ids"][:shared], 0, (), shared)
        self.order.append(self.batch.image_of[pairs[0]])
        for pair in pairs:
            self._append_pair(pair, shared, ((self.runs[trunk].start, self.runs[trunk].end),))
        self.runs[trunk] = self.runs[trunk]._replace(stop=self.size)

    def add_pair(self, pair: int) -> None:
        """Append a pair that shares nothing."""
        self.order.append(self.batch.image_of[pair])
        self._append_pair(pair, 0, ())

    def laid(self) -> Laid:
        """Return the row."""
        pairs = range(len(self.batch))
        places = torch.cat(self.positions, 1)
        inputs = {
            "input_ids": torch.cat(self.ids)[None],
            "position_ids": places if len(places) == 1 else places[:, None],
        }
        last_layer = len(decoder_of(self.network).layers) - 1
        packed = Packed(self.runs, torch.cat(self.blocks), last_layer)
        scored = [place for pair in pairs for place in self.scored[pair]]
        return _laid(self.network, inputs, self.order, scored, _sides(self.batch), packed)

    def _append_pair(self, pair: int, shared: int, ancestors: tuple[tuple[int, int], ...]) -> None:
        """Append a pair's prompt from token ``shared`` on, and its two responses."""
        prompt = self.batch.prompts[pair]["input_ids"]
        own = self._append(pair, prompt[shared:], shared, ancestors, len(prompt) - shared - 1)
        span = (self.runs[own].start, self.runs[own].end)
        self.scored[pair] = []
        for side in (self.batch.chosen[pair], self.batch.rejected[pair]):
            first = self.size
            if len(side) > 1:
                self._append(pair, side[:-1], len(prompt), (*ancestors, span), 0)
            # the state of the prompt's last token predicts the response's first
            self.scored[pair].append(torch.cat([torch.tensor([span[1] - 1]), torch.arange(first, self.size)]))
        self.runs[own] = self.runs[own]._replace(stop=self.size)

    def _append(self, pair: int, ids: Tensor, begin: int, ancestors: tuple[tuple[int, int], ...], read: int) -> int:
        """Append tokens whose first is number ``begin`` of its branch; states from number ``read`` of theirs are read.

        Returns:
            The number of their run.
        """
        if pair not in self.of_pairs:
            length = max(len(self.batch.chosen[pair]), len(self.batch.rejected[pair])) - 1
            of_prompt = blocks(self.network, self.batch.prompts[pair])
            self.of_pairs[pair] = (
                families.positions(self.network, self.batch, pair, length),
                torch.cat([of_prompt, of_prompt.new_full((length,), -1)]),
            )
        places, of_tokens = self.of_pairs[pair]
        self.ids.append(ids)
        self.positions.append(places[:, begin : begin + len(ids)])
        self.blocks.append(of_tokens[begin : begin + len(ids)])
        start, self.size = self.size, self.size + len(ids)
        self.runs.append(Run(start, self.size, self.size, ancestors, start + read))
        return len(self.runs) - 1

    def _shared(self, pairs: list[int]) -> int:
        """Count the tokens that the prompts of these pairs begin with alike; no block is cut, nor the image."""
        if len(pairs) == 1:
            return 0
        prompts = [self.batch.prompts[pair] for pair in pairs]
        size = min(len(prompt["input_ids"]) for prompt in prompts) - 1  # each keeps its last token, which is scored
        first = prompts[0]
        alike = torch.ones(size, dtype=torch.bool)
        for prompt in prompts[1:]:
            for key, value in prompt.items():
                alike &= value[:size] == first[key][:size]
        length = int(alike.cumprod(0).sum())
        block = blocks(self.network, first)
        while length and block[length] >= 0 and block[length - 1] == block[length]:
            length -= 1
        image = first["input_ids"] == image_token_of(self.network)
        return 0 if image[length:].any() else length


def _sides(batch: PreferenceBatch) -> list[Tensor]:
    """Return the 2B responses in the order of sequences."""
    return [side for pair in zip(batch.chosen, batch.rejected, strict=True) for side in pair]


def _laid(
    network: Any,  # noqa: ANN401
    inputs: dict[str, Tensor],
    order: list[int],
    scored: list[Tensor],
    sides: list[Tensor],
    packed: Packed | None,
) -> Laid:
    """Put everything on the model's device."""
    device = base_of(network).get_input_embeddings().weight.device
    moved = {key: value.to(device, non_blocking=True) for key, value in inputs.items()}
    places, targets = (torch.cat(parts).to(device, non_blocking=True) for parts in (scored, sides))
    return Laid(moved, order, places, targets, [len(side) for side in sides], packed)


def _row(prompt: dict[str, Tensor], response: Tensor) -> dict[str, Tensor]:
    """Put a response behind its prompt, token by token."""
    row = {key: torch.cat([value, _of_response(key, value, response)]) for key, value in prompt.items()}
    return {**row, "attention_mask": torch.ones_like(row["input_ids"])}


def _of_response(key: str, of_prompt: Tensor, response: Tensor) -> Tensor:
    """Return what an input is where a response stands."""
    if key == "input_ids":
        return response
    # Token types tell text, 0, from images; or, if the images are 0 as well, prompts, which may attend to themselves
    # in both directions, from responses, which then are 1.
    return torch.full_like(response, 0 if of_prompt.any() else 1, dtype=of_prompt.dtype)
