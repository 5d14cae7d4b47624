"""Memory of a device, and its parts: what is there all the time, and what a step adds. All in bytes."""

from typing import Literal, NamedTuple

from synthalign.plan.optimizers import OptimizerCost

Spread = Literal["whole", "ddp", "sharded", "fsdp"]
"""One device or equal copies without DDP; copies that DDP keeps equal; language model spread over the devices by FSDP2;
or by the older FSDP, which is reckoned as FSDP2 is, but keeps a frozen copy whole."""

SHARDED: frozenset[Spread] = frozenset({"sharded", "fsdp"})

GATHERED_LAYERS = 2
"""Layers that are whole at a time under FSDP2: the one that computes, and the next, which is fetched meanwhile."""


class Shares(NamedTuple):
    """Weights of a network, bytes, by what is done with them."""

    language: int  # the language model's frozen weights
    encoder: int  # everything else, whole on every device
    trained: int
    trained_numbers: int  # how many, no bytes
    largest_layer: int  # the decoder layer with most
    root: int  # what is in no layer: embeddings, last norm, head
    trained_in_layer: int  # the trained weights of the largest layer


class Counted(NamedTuple):
    """One step of a device, bytes, counted on fakes; without weights and gradients."""

    forward: int  # most alive up to the end of the forward pass
    backward: int  # most alive in the backward pass, gradients left out
    fresh: int  # the same with gradients that come to be on the way, none being there before
    kept: int  # what the forward pass keeps for the backward pass
    operations: dict[str, int]  # floating-point operations by phase: encoder, reference, policy, backward


class Memory(NamedTuple):
    """Bytes of one device."""

    language: int
    encoder: int
    trained: int
    gradients: int
    optimizer: int
    reference: int  # a frozen copy
    buckets: int  # in which DDP sends gradients
    gathered: int  # what FSDP has whole at a time, and the gradients of a layer before they are shared out
    images: int  # pixels of the batch
    activations: int  # kept by the forward pass
    passing: int  # most that a step takes besides
    update: int  # what the optimizer takes while it steps, when activations are gone

    @property
    def lasting(self) -> int:
        """What is there all the time."""
        parts = (self.language, self.encoder, self.trained, self.gradients, self.optimizer, self.reference)
        return sum(parts) + self.buckets

    @property
    def step(self) -> int:
        """What a step adds at its highest."""
        return max(self.gathered + self.images + self.activations + self.passing, self.images + self.update)

    @property
    def peak(self) -> int:
        """The most at a time."""
        return self.lasting + self.step


def memory_of(
    shares: Shares,
    counted: Counted,
    optimizer: OptimizerCost,
    *,
    spread: Spread,
    world_size: int,
    frozen_copy: bool,
    images: int,
    accumulates: bool = False,
) -> Memory:
    """Put together what one device holds.

    Args:
        shares: Of the network.
        counted: A step of a device.
        optimizer: What it keeps for each trained number.
        spread: How the run is spread over devices.
        world_size: Number of devices.
        frozen_copy: Whether a second network is the reference, which FSDP2 spreads as it does the first.
        images: Bytes of the batch's pixels.
        accumulates: Whether gradients of earlier batches are there in the backward pass; else they are freed before it.

    Returns:
        The parts of a device's memory, bytes.
    """
    shared, copy_shared = spread in SHARDED, spread == "sharded"
    parts = world_size if shared else 1
    state = round(optimizer.state * shares.trained_numbers)
    update = round(optimizer.update * shares.trained_numbers)
    gathered = 0
    if shared:
        # forward and backward hold the root whole; the gradient of a layer is whole before each device gets its share,
        # once as computed, once laid out for sending
        roots = 2 if frozen_copy and copy_shared else 1
        gathered = roots * shares.root + GATHERED_LAYERS * shares.largest_layer + 2 * shares.trained_in_layer
    copy = (shares.language + shares.trained) // (world_size if copy_shared else 1) + shares.encoder
    backward = counted.backward if accumulates or shared else counted.fresh - shares.trained
    return Memory(
        language=shares.language // parts,
        encoder=shares.encoder,
        trained=shares.trained // parts,
        gradients=shares.trained // parts,
        optimizer=state // parts,
        reference=copy if frozen_copy else 0,
        buckets=shares.trained if spread == "ddp" else 0,
        gathered=gathered,
        images=images,
        activations=counted.kept,
        passing=max(counted.forward, backward) - counted.kept,
        update=update // parts,
    )
