"""Preference pairs for training: made on setup, or read from a set that exists."""

import json
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import ConcatDataset, DataLoader
from tqdm import tqdm

from synthalign.datamodules.batches import LengthGroupedBatches, RankBatches, Steps, TrainingLoader, even_batches
from synthalign.datamodules.dataset import Entry, PairDataset
from synthalign.datamodules.filling import FilledBatches, Limit, batches_by_length, held_out_batches
from synthalign.dpo.batch import PairTokens, PreferenceBatch, collate
from synthalign.pairs import PAIR_GATES, RESPONSE_GATES, refuse, surplus
from synthalign.pipeline import Synthesis, summary
from synthalign.store import digest, recipe_of, seed_of, write_atomically
from synthalign.tables import IMAGE_TOKEN, PairSet, read_pairs
from synthalign.types import Drop, PairGate, PickedPair, ResponseGate
from synthalign.vlm import Chat

SHOWN_DROPS = 20
"""Drops of an existing set that are named one by one on the terminal."""


class SyntheticPreferenceDataModule(LightningDataModule):
    """Preference pairs, made from prompts on ``setup("fit")`` or read from an existing set.

    Give ``synthesis`` or ``pairs``. What is dropped is counted, and named with its reason in the run's dropped.jsonl.

    Args:
        synthesis: How to make the pairs. Whatever is on disk already is not made again.
        pairs: A set that exists: the Synth-Align authors' JSON, TRL's conversational preference rows, RLAIF-V's
            columns, a folder of our own pairs, or a hub dataset's ``owner/name[@revision]``.
        images: Folder of the images that the rows of ``pairs`` name by path; by default the folder of ``pairs``.
        response_gates: Which responses of ``pairs`` are unfit; RESPONSE_GATES of synthalign.pairs by default.
        pair_gates: Which pairs of ``pairs`` are unfit; PAIR_GATES of synthalign.pairs by default.
        balance_yes_no: Leave out surplus pairs so that as many choose "yes…" as "no…".
        max_length: Longest prompt plus response, tokens, image tokens counted; longer pairs are dropped, none is ever
            cut. The policy's own limit by default.
        val_share: Share of the images whose pairs are held out for validation, in [0, 1).
        batch_size: Pairs per batch and rank.
        max_tokens: Fill batches up to this many tokens instead of batch_size pairs; a pair costs its prompt, image
            tokens counted, and both responses. One that costs more is a batch of its own.
        shares_images: Keep pairs of one image in one batch where they fit, its tokens counting once towards
            max_tokens: for a layout that runs them once. The command line links it from the layout.
        num_workers: Processes that prepare batches.
        seed: Of the split, the balance and the order.
        chat: The policy's; the command line links it.
    """

    def __init__(
        self,
        *,
        synthesis: Synthesis | None = None,
        pairs: str | None = None,
        images: str | None = None,
        response_gates: list[ResponseGate] | None = None,
        pair_gates: list[PairGate] | None = None,
        balance_yes_no: bool = False,
        max_length: int | None = None,
        val_share: float = 0.0,
        batch_size: int = 4,
        max_tokens: int | None = None,
        shares_images: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        chat: Chat | None = None,
    ) -> None:
        super().__init__()
        if synthesis is not None and pairs is not None:
            raise ValueError("give synthesis or pairs, not both: is this set made, or does it exist?")
        if not 0 <= val_share < 1 or batch_size < 1:
            raise ValueError(f"val_share must be in [0, 1) and batch_size >= 1, got {val_share} and {batch_size}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be >= 1, or null for the policy's own limit, got {max_length}")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, or null to fill batches by batch_size, got {max_tokens}")
        self.synthesis, self.pairs, self.images = synthesis, pairs, images
        self.response_gates: list[ResponseGate] = list(RESPONSE_GATES) if response_gates is None else response_gates
        self.pair_gates: list[PairGate] = list(PAIR_GATES) if pair_gates is None else pair_gates
        self.balance_yes_no, self.max_length, self.val_share = balance_yes_no, max_length, val_share
        self.batch_limit = Limit(batch_size=batch_size, max_tokens=max_tokens, shares_images=shares_images)
        self.num_workers, self.seed, self.chat = num_workers, seed, chat
        self.dropped: list[tuple[str, Drop]] = []
        self.train_set: PairDataset | None = None
        self.val_set: PairDataset | None = None
        self._loader: TrainingLoader | None = None
        self._resumed: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Under ``fit``, make or read the pairs; ``validate`` only reads them; ``test`` needs none."""
        if stage == "test" or self.train_set is not None:
            return
        if self.synthesis is None:
            self._split(self._existing())
        elif stage == "fit":
            with isolate_rng(include_cuda=False):  # a fresh adapter is the same, whether pairs were missing or not
                table = self.synthesize()
            self._split(read_pairs(table))
        else:
            self._split(read_pairs(self._landed()))

    def synthesize(self) -> Path:
        """Make whatever pairs are missing and return their table.

        Raises:
            ValueError: There is no recipe.
        """
        if self.synthesis is None:
            raise ValueError("there is nothing to synthesize: the datamodule has no synthesis")
        return self.synthesis.run(*self._rank_and_size)

    @property
    def _rank_and_size(self) -> tuple[int, int]:
        """This process's rank, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _landed(self) -> Path:
        assert self.synthesis is not None
        table = self.synthesis.table
        if not table.is_file():
            raise ValueError(f"the pairs are not made yet (there is no {table}): run `synthalign synthesize` first")
        return table

    def _existing(self) -> PairSet:
        if self.pairs is None:
            raise ValueError("there is nothing to train on: give the datamodule synthesis or pairs")
        return read_pairs(Path(self.pairs), None if self.images is None else Path(self.images))

    def _split(self, pairs: PairSet) -> None:
        """Drop what is unfit, then split by image."""
        self.dropped, kept = list(pairs.dropped), []
        for index, row in enumerate(pairs.rows):
            entry = self._entry(pairs, index)
            if isinstance(entry, Drop):
                self.dropped.append((row.id, entry))
            else:
                kept.append(entry)
        rows = [pairs.rows[entry.place] for entry in kept]
        if self.balance_yes_no:
            left_out = surplus([row.id for row in rows], [row.chosen for row in rows], self.seed)
            self.dropped += [(row_id, Drop("surplus", "of the commoner answer")) for row_id in sorted(left_out)]
            kept = [entry for entry, row in zip(kept, rows, strict=True) if row.id not in left_out]
        sides: tuple[list[Entry], list[Entry]] = [], []
        for entry in kept:
            image_id = pairs.rows[entry.place].image_id
            sides[seed_of(self.seed, "split", image_id) < self.val_share * 2**63].append(entry)
        self.train_set, self.val_set = (PairDataset(pairs, entries) for entries in sides)
        self._tell()
        if not sides[False]:
            raise ValueError(f"no pair is left to train on: {summary(len(sides[True]), self.dropped)}")

    def _entry(self, pairs: PairSet, index: int) -> Entry | Drop:
        """Encode one pair's responses, or say why the pair is unfit."""
        if self.chat is None:
            raise ValueError("the datamodule needs the policy's chat: chat=module.chat (the command line links it)")
        row = pairs.rows[index]
        if self.synthesis is None:  # made pairs have been through their recipe's gates
            picked = PickedPair(row.question, row.chosen, row.rejected, row.margin)
            drop = refuse(self.response_gates, self.pair_gates, picked)
            if drop is not None:
                return drop
        placeholder = getattr(self.chat.processor, "image_token", IMAGE_TOKEN)
        if placeholder in row.chosen + row.rejected:  # it would call for an image that is not there
            return Drop("image_token", f"a response contains {placeholder!r}")
        chosen, rejected = (self.chat.response_ids(row.question, text) for text in (row.chosen, row.rejected))
        size = pairs.images.size(index)
        try:
            prompt_length = self.chat.prompt_length(row.question, size)
        except ValueError as error:  # a chat template or system prompt that does not name the image once
            raise ValueError(f"pair {row.id}: the policy's processor refuses its prompt ({error})") from error
        written = self.chat.tokenizer(self.chat.prompt(row.question), add_special_tokens=False).input_ids
        entry = Entry(index, chosen, rejected, prompt_length, prompt_length - len(written))
        limit = self.max_length or self.chat.max_length
        if entry.length > limit:
            return Drop("too_long", f"{entry.length} tokens, the limit is {limit}")
        return entry

    def _tell(self) -> None:
        """Say what there is and what was dropped; every drop with its reason goes into the run's folder."""
        run = self.trainer.log_dir if self.trainer is not None and self.trainer.loggers else None  # asks all ranks
        if self.trainer is not None and not self.trainer.is_global_zero:
            return
        assert self.train_set is not None and self.val_set is not None
        if run is not None:
            Path(run).mkdir(parents=True, exist_ok=True)
            said = {"pairs": len(self.train_set), "held_out": len(self.val_set), "fingerprint": self._mark()}
            write_atomically(Path(run) / "data.json", (json.dumps(said) + "\n").encode())
        if run is not None and self.dropped:
            rows = ({"id": row_id, **drop._asdict()} for row_id, drop in self.dropped)
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_atomically(Path(run) / "dropped.jsonl", content.encode())
        lines = [summary(len(self.train_set) + len(self.val_set), self.dropped)]
        if self.val_share or self._validating:
            lines[0] += f"; {len(self.val_set)} held out for validation"
        if self.synthesis is None:  # of made pairs, most drops are a recipe's daily bread: dropped.jsonl names them
            lines += [f"  {row_id}: {drop.reason} ({drop.detail})" for row_id, drop in self.dropped[:SHOWN_DROPS]]
            if len(self.dropped) > SHOWN_DROPS:
                lines.append(f"  and {len(self.dropped) - SHOWN_DROPS} more")
        sys.stderr.write("\n".join(lines) + "\n")

    def _mark(self) -> str:
        """Digest what is trained on and held out: ids and texts, and images by their ids."""
        assert self.train_set is not None and self.val_set is not None
        rows = [part.pairs.rows[entry.place] for part in (self.train_set, self.val_set) for entry in part.entries]
        return digest([[row.id, row.image_id, row.question, row.chosen, row.rejected] for row in rows])

    def train_dataloader(self) -> TrainingLoader:
        """Batches of pairs alike in length, in a seeded order, every rank its own and as many."""
        assert self.train_set is not None
        rank, world_size = self._rank_and_size
        batches = RankBatches(self.steps(world_size), rank=rank)
        self._loader = TrainingLoader(self.train_set, batch_sampler=batches, **self._settings)
        if self._resumed:
            self._loader.load_state_dict(self._resumed)
            self._resumed = {}
        return self._loader

    def steps(self, world_size: int) -> Steps:
        """Say what so many processes do in an epoch.

        Raises:
            ValueError: There are fewer batches, or with ``max_tokens`` or ``shares_images`` pairs, than processes.
        """
        assert self.train_set is not None
        steps: Steps
        if self._by_size:
            steps = LengthGroupedBatches(
                self.train_set.lengths, self.batch_limit.batch_size, seed=self.seed, world_size=world_size
            )
        else:
            steps = FilledBatches(self.train_set.loads, self.batch_limit, seed=self.seed, world_size=world_size)
        if not len(steps):
            size = f" with a batch_size of {self.batch_limit.batch_size}" if self._by_size else ""
            raise ValueError(
                f"{len(self.train_set)} pairs are too few for {world_size} processes{size}: some would have nothing "
                f"to train on; lower {'batch_size or ' if size else ''}the number of processes"
            )
        return steps

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Held-out pairs. If none are held out, one empty batch under ``validate``, as under ``test``."""
        assert self.val_set is not None
        if not len(self.val_set):
            return self.test_dataloader() if self._validating else []
        rank, world_size = self._rank_and_size
        if self._by_size:
            batches = even_batches(self.val_set.lengths, self.batch_limit.batch_size, rank=rank, world_size=world_size)
        else:
            batches = held_out_batches(self.val_set.loads, self.batch_limit, rank=rank, world_size=world_size)
        return DataLoader(self.val_set, batch_sampler=batches, **self._settings)

    def test_dataloader(self) -> DataLoader:
        """One empty batch: without any, Lightning would skip the hooks in which the evaluations run."""
        nothing: Any = [[]]  # a list serves as a dataset
        return DataLoader(nothing, batch_size=None)

    def fingerprints(self) -> list[tuple[str, str]]:
        """Name what the log-probs of each pair, held-out ones included, depend on besides the model.

        Returns:
            Of each pair its id, and a digest of its prompt, its responses' tokens and its image's content; in the
            order of the set, whatever is held out of it.
        """
        assert self.chat is not None and self.train_set is not None and self.val_set is not None
        total = len(self.train_set) + len(self.val_set)
        other = self._rank_and_size[0] > 0
        found = []
        with tqdm(total=total, desc="fingerprints", delay=2, leave=False, disable=other) as bar:
            for dataset in (self.train_set, self.val_set):
                for position, entry in enumerate(dataset.entries):
                    found.append((entry.place, dataset.ids[position], dataset.fingerprint(position, self.chat)))
                    bar.update()
        return [(pair_id, name) for _, pair_id, name in sorted(found)]

    def reference_batches(self, blocks: Iterable[Sequence[str]]) -> Iterable[PreferenceBatch]:
        """Return batches of the pairs with these ids, held-out ones too: all for this process.

        Args:
            blocks: Ids, each once; no batch crosses from one block into the next. In a block the longest come first.

        Raises:
            KeyError: There is no such pair.
        """
        assert self.train_set is not None and self.val_set is not None
        every: ConcatDataset[PairTokens] = ConcatDataset([self.train_set, self.val_set])
        loads = self.train_set.loads + self.val_set.loads
        places = {row_id: place for place, row_id in enumerate(self.train_set.ids + self.val_set.ids)}
        sampler: list[list[int]] = []
        for block in blocks:
            asked = [places[row_id] for row_id in block]
            batches = batches_by_length([loads[place] for place in asked], self.batch_limit)
            sampler += [[asked[row] for row in batch] for batch in batches]
        return DataLoader(every, batch_sampler=sampler, **self._settings)

    @property
    def _by_size(self) -> bool:
        """Whether batches are of so many pairs, whatever these are."""
        return self.batch_limit.max_tokens is None and not self.batch_limit.shares_images

    @property
    def _settings(self) -> dict[str, Any]:
        assert self.chat is not None
        return {
            # from which a loader seeds its workers: else from the global state, of which a run that goes on draws less
            "generator": torch.Generator(),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "collate_fn": partial(collate, chat=self.chat),
        }

    @property
    def _validating(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == TrainerFn.VALIDATING

    def state_dict(self) -> dict[str, Any]:
        """Say where in the epoch training is, and in which batches: what the loader says comes back too late."""
        if self._loader is None:
            return {}
        within = self.trainer is None or not self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return {**self._loader.state_dict(), "within": within, "order": self._order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: It is no such place, or within an epoch of other batches.
        """
        if not state_dict or (self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING):
            return
        place = {key: state_dict.get(key) for key in ("epoch", "given")}
        kinds = [type(state_dict.get(key)) for key in ("epoch", "given", "within", "order")]
        if kinds != [int, int, bool, str] or min(state_dict["epoch"], state_dict["given"]) < 0:
            raise ValueError("its place in the data is damaged")
        if state_dict["order"] != self._order:
            if state_dict["within"]:
                raise ValueError(
                    "it was saved within an epoch of other batches: go on with the pairs, the settings of data and the "
                    "policy's tokenizer that it was saved with, or take a checkpoint from the end of an epoch"
                )
            if self._rank_and_size[0] == 0:
                sys.stderr.write("synthalign: the checkpoint is from the end of an epoch of other pairs or batches\n")
        if self._loader is not None:  # strategies that restore after they have set up may have asked for it
            self._loader.load_state_dict(place)
        else:
            self._resumed = place

    @cached_property
    def _order(self) -> str:
        """Digest what an epoch's batches depend on besides the number of processes."""
        assert self.train_set is not None
        limit = recipe_of(self.batch_limit)
        return digest([self._mark(), self.seed, limit, self.train_set.lengths, self.train_set.loads])
