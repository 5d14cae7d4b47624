"""The reference: log-probs of what the policy was before it learnt anything, with its adapters off.

Three ways to them, for a LightningModule to choose from by class_path: the policy's own weights, computed each time; a
frozen copy; or a cache on disk, computed once. B pairs.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch

from synthalign.dpo.policy import adapters_off, trained_without_adapters
from synthalign.dpo.reference_cache import Preparation, Row, prepared
from synthalign.types import PairLogps

Spread = Callable[[Any], None]


class Reference(Protocol):
    """Gives the log-probs that the policy's are held against."""

    def begin(self, network: Any, spread: Spread | None = None) -> None:  # noqa: ANN401 - any Hugging Face model
        """Look at the policy as it was loaded, before a checkpoint or a step changes it.

        Args:
            network: The policy, whole.
            spread: Spreads a network over the ranks, where the policy will be.
        """
        ...

    def prepare(self, network: Any, preparation: Callable[[], Preparation]) -> None:  # noqa: ANN401
        """Do what must be done before the first step, on all ranks; who needs no preparation does not ask for it."""
        ...

    def __call__(self, network: Any, ids: Sequence[str], score: Callable[[Any], PairLogps]) -> PairLogps:  # noqa: ANN401
        """Return the reference's log-probs of a batch, without gradient.

        Args:
            network: The policy.
            ids: Of the B pairs.
            score: Scores them under a network.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class AdaptersOff:
    """The policy's own weights with the adapters off: nothing more in memory, and the same code path and layout."""

    def begin(self, network: Any, spread: Spread | None = None) -> None:  # noqa: ANN401
        """Refuse a policy that has no adapter, or trains weights besides: it does not stay its own reference.

        Raises:
            ValueError: Weights are trained that stay with the adapters off.
        """
        if trained := trained_without_adapters(network):
            raise ValueError(
                f"the policy trains weights of its own ({trained[0]}, {len(trained)} in all), so with adapters off it "
                "is no frozen reference: take synthalign.dpo.reference.Cached (log-probs computed once, kept on disk) "
                "or synthalign.dpo.reference.FrozenCopy (a second model in memory)"
            )

    def prepare(self, network: Any, preparation: Callable[[], Preparation]) -> None:  # noqa: ANN401
        """Do nothing."""

    @torch.no_grad()
    def __call__(self, network: Any, ids: Sequence[str], score: Callable[[Any], PairLogps]) -> PairLogps:  # noqa: ANN401
        """Score with the adapters off."""
        with adapters_off(network):
            return score(network)


class FrozenCopy:
    """A second model in memory, made when the policy is loaded: for training all weights.

    It has the policy's device and dtype from its first use on, and is spread over the ranks where the policy is by
    FSDP2; under FSDPStrategy it is whole on every rank.
    """

    def __init__(self) -> None:
        self._copy: Any = None
        self._placed = self._spread = False

    def begin(self, network: Any, spread: Spread | None = None) -> None:  # noqa: ANN401
        """Copy the policy."""
        self._copy, self._placed = copy.deepcopy(network).eval().requires_grad_(False), False
        self._spread = spread is not None
        if spread is not None:
            spread(self._copy)

    def prepare(self, network: Any, preparation: Callable[[], Preparation]) -> None:  # noqa: ANN401
        """Do nothing."""

    @torch.no_grad()
    def __call__(self, network: Any, ids: Sequence[str], score: Callable[[Any], PairLogps]) -> PairLogps:  # noqa: ANN401
        """Score under the copy, its adapters off if it has any."""
        assert self._copy is not None, "begin comes first"
        if not self._placed:  # a strategy moves and casts the policy only after it was loaded
            self._place(network)
        with adapters_off(self._copy):
            return score(self._copy)

    @torch.inference_mode(False)  # in which Lightning validates: what is moved there could not be used elsewhere
    def _place(self, network: Any) -> None:  # noqa: ANN401
        """Bring the copy to the policy's device and dtypes."""
        device = next(network.parameters()).device
        if self._spread:  # then the data of its parameters are shares
            self._copy.to(device, network.dtype)
            self._placed = True
            return
        dtypes = {name: tensor.dtype for name, tensor in chain(network.named_parameters(), network.named_buffers())}
        for name, mine in chain(self._copy.named_parameters(), self._copy.named_buffers()):
            mine.data = mine.data.to(device, dtypes.get(name, mine.dtype))
        self._placed = True


class Cached:
    """Log-probs of every pair, computed once before training and kept on disk: a step then runs the policy alone.

    For adapters, which are off meanwhile, and for training all weights. What was made by other weights, in another
    dtype or layout, or of other pairs is never used: see synthalign.dpo.reference_cache.

    Where the weights are spread over ranks (FSDP and the like), all would have to run them together: take AdaptersOff
    there, or a cache that a run under another strategy made.

    Args:
        folder: Of the caches; runs may share it.
        shard_size: Pairs that are computed, and lost when the process dies, at once.
    """

    def __init__(self, *, folder: str = "runs/reference", shard_size: int = 256) -> None:
        if shard_size < 1:
            raise ValueError(f"shard_size must be >= 1, got {shard_size}")
        self.folder, self.shard_size = folder, shard_size
        self._rows: dict[str, Row] = {}  # by id

    def begin(self, network: Any, spread: Spread | None = None) -> None:  # noqa: ANN401
        """Do nothing: the values are of the policy as ``prepare`` gets it."""

    def prepare(self, network: Any, preparation: Callable[[], Preparation]) -> None:  # noqa: ANN401
        """Compute whatever values are missing and load them all; see synthalign.dpo.reference_cache.prepared."""
        self._rows = prepared(Path(self.folder), self.shard_size, network, preparation())

    def __call__(self, network: Any, ids: Sequence[str], score: Callable[[Any], PairLogps]) -> PairLogps:  # noqa: ANN401
        """Look the pairs up: bit for bit what was computed, on the policy's device.

        Raises:
            ValueError: A pair was not among those prepared.
        """
        if unknown := [pair_id for pair_id in ids if pair_id not in self._rows]:
            raise ValueError(
                f"the reference cache in {self.folder} has no log-probs of pair {unknown[0]!r}: it was prepared for "
                f"{len(self._rows)} pairs, and not for this one"
            )
        rows = [self._rows[pair_id] for pair_id in ids]
        device = next(network.parameters()).device
        dtype = getattr(torch, rows[0]["dtype"])
        sums = [torch.tensor([row[side] for row in rows], dtype=dtype, device=device) for side in PairLogps._fields[:2]]
        counts = [torch.tensor([row[side] for row in rows], device=device) for side in PairLogps._fields[2:]]
        return PairLogps(*sums, *counts)
