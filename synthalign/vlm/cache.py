"""Keys and values of rows that share the beginning of their prompts: the shared ones once, the rows' own by row.

N rows, L tokens of a stem, G heads of keys and values, E width of a head, Q new tokens of each row.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthalign.vlm.attention import NotCarriedError, as_autocast, merge, part


class Stems(NamedTuple):
    """Beginnings of prompts, all equally long, as the model's own forward left them in its cache.

    One tensor a layer, each (stems, G, L, E).
    """

    keys: list[Tensor]
    values: list[Tensor]


class Place(NamedTuple):
    """Where a row's stem is."""

    stems: Stems
    number: int

    def alone(self) -> "Place":
        """Return the stem without those that were read together with it, whose memory is then free."""
        if len(self.stems.keys[0]) == 1:
            return self
        keys, values = ([one[self.number : self.number + 1].clone() for one in part] for part in self.stems)
        return Place(Stems(keys, values), 0)


class _Group(NamedTuple):
    """The rows upon some stems; a stem with fewer rows than another repeats one."""

    stems: Stems
    rows: Tensor  # (stems, n)


class SharedCache:
    """What N rows see: their stems, which stay where they are, and their own tokens, in memory that grows by doubling.

    Args:
        places: Of the rows' stems.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = list(places)
        self.own: dict[int, tuple[Tensor, Tensor]] = {}  # by layer: (N, G, room, E) each
        self.present = torch.zeros(len(places), 0, dtype=torch.bool)  # (N, used): whether it is a token of the row
        self.before = 0  # tokens of each row before the present forward
        self._device = places[0].stems.keys[0].device
        self._groups, self._back = _grouped(self.places, self._device)
        self._bias: Tensor | None = None
        self._padded = False

    def extend(self, present: Tensor) -> None:
        """Prepare for a forward of Q more tokens, of which those present (N, Q), on the CPU, are no padding."""
        self.before = self.present.shape[1]
        self.present = torch.cat([self.present, present], 1)
        self._bias = None
        self._padded = not bool(self.present.all())

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attend in one layer: (N, H, Q, E) and twice (N, G, Q, E) in, (N, H, Q, E) out."""
        keys, values = self._write(layer, key, value)
        own = part(query, keys, values, scaling, self._bias_of(query))
        return merge(own, self._to_stems(layer, query, scaling))

    def take(self, rows: Sequence[int], places: Sequence[Place] | None = None) -> "SharedCache":
        """Return the cache of these rows, one of which may come several times; upon other stems, if given."""
        taken = SharedCache(places or [self.places[row] for row in rows])
        taken.present = self.present[torch.tensor(rows)]
        used, index = self.present.shape[1], torch.tensor(rows, device=self._device)
        for layer, (keys, values) in self.own.items():
            taken.own[layer] = keys[:, :, :used].index_select(0, index), values[:, :, :used].index_select(0, index)
        return taken

    def _write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        used = self.present.shape[1]
        known = self.own.get(layer)
        if known is None or known[0].shape[2] < used:
            room = max(used, 2 * known[0].shape[2] if known else 0, LEAST_ROOM)
            grown = tuple(one.new_empty(*one.shape[:2], room, one.shape[3]) for one in (key, value))
            for new, old in zip(grown, known or (), strict=False):
                new[:, :, : self.before] = old[:, :, : self.before]
            self.own[layer] = grown[0], grown[1]
        keys, values = self.own[layer]
        keys[:, :, self.before : used], values[:, :, self.before : used] = key, value
        return keys[:, :, :used], values[:, :, :used]

    def _bias_of(self, query: Tensor) -> Tensor | None:
        """Return who does not see whom among the rows' own tokens, (N, 1, Q, used); None where all do."""
        num, used = query.shape[2], self.present.shape[1]
        if num == 1 and not self._padded:
            return None
        if self._bias is None:
            at = torch.arange(used)
            seen = self.present[:, None] & (at <= at[-num:, None])
            seen |= at == at[-num:, None]  # padding sees itself, or its output were not a number
            bias = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, -torch.inf)
            self._bias = bias[:, None].to(self._device)
        return self._bias

    def _to_stems(self, layer: int, query: Tensor, scaling: float | None) -> tuple[Tensor, Tensor]:
        outputs, sums = [], []
        for stems, rows in self._groups:
            count, each = rows.shape
            heads, num, width = query.shape[1:]
            asked = query[rows.flatten()].view(count, each, heads, num, width).transpose(1, 2).flatten(2, 3)
            output, lse = part(asked, stems.keys[layer], stems.values[layer], scaling)
            outputs.append(output.view(count, heads, each, num, width).transpose(1, 2).flatten(0, 1))
            sums.append(lse.view(count, heads, each, num).transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)[self._back], torch.cat(sums)[self._back]


LEAST_ROOM = 64
"""Tokens that there is room for at first."""


def stems_of(cache: Any) -> Stems:  # noqa: ANN401 - a DynamicCache of transformers
    """Read what a forward left in its cache.

    Raises:
        NotCarriedError: A layer remembers something else than the keys and values of all tokens.
    """
    for layer in cache.layers:
        if type(layer).__name__ != "DynamicLayer":
            raise NotCarriedError(f"a layer of it remembers by {type(layer).__name__}")
    return Stems(*([as_autocast(getattr(layer, kind)) for layer in cache.layers] for kind in ("keys", "values")))


def _grouped(places: Sequence[Place], device: torch.device) -> tuple[list[_Group], Tensor]:
    """Gather the rows by their stems; say where each row then is in what all groups give, one behind the other."""
    together: dict[int, list[int]] = {}
    for row, place in enumerate(places):
        together.setdefault(id(place.stems), []).append(row)
    groups, back, size = [], torch.zeros(len(places), dtype=torch.long), 0
    for rows in together.values():
        stems = places[rows[0]].stems
        upon = [[row for row in rows if places[row].number == number] for number in range(len(stems.keys[0]))]
        each = max(len(one) for one in upon)
        for one in upon:
            back[torch.tensor(one, dtype=torch.long)] = torch.arange(size, size + len(one))
            one.extend([one[0] if one else rows[0]] * (each - len(one)))
            size += each
        groups.append(_Group(stems, torch.tensor(upon, device=device)))
    return groups, back.to(device)
