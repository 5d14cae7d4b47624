"""One training step of a run, taken on fake tensors by the code that will take it, and counted.

S tokens of a row.
"""

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)

from synthalign.dpo.attention import attending
from synthalign.dpo.attention_cuda import varlen_index
from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.checkpointing import checkpoint_layers
from synthalign.dpo.families import softcap_of, trains_encoder
from synthalign.dpo.fused import fuse
from synthalign.dpo.head import token_logps
from synthalign.dpo.layouts import Laid, Layout
from synthalign.dpo.policy import LoRA, adapters_off, train_language
from synthalign.plan import Live, quantise, weigh, weightless
from synthalign.plan.memory import Counted, Shares
from synthalign.vlm.families import base_of, decoder_of, image_token_of, takes_features
from synthalign.vlm.features import encode_images
from synthalign.weights import DType, Quantization

ReferenceKind = Literal["adapters_off", "copy", "cached"]
"""How the reference's log-probs come about in a step."""

DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)


class Encoder(NamedTuple):
    """What the images of a batch cost."""

    peak: int  # bytes
    operations: int  # floating-point operations


def skeleton(
    config: Any,  # noqa: ANN401 - a configuration of transformers
    *,
    dtype: DType = "auto",
    quantization: Quantization | None = None,
    lora: LoRA | None = None,
    fused: bool = True,
    gradient_checkpointing: bool = False,
    cast: torch.dtype | None = None,
) -> Any:  # noqa: ANN401
    """Build the policy as a run trains it, of the right shapes and types and without weights.

    Args:
        config: Of the model.
        dtype: Of the frozen weights; auto: as they were saved.
        quantization: Of the decoder's layers.
        lora: Adapters; None to train the language model itself.
        fused: As DPOModule has it.
        gradient_checkpointing: As DPOModule has it.
        cast: Of all weights, adapters included, where the trainer's precision is one "true".
    """
    from transformers import AutoModelForImageTextToText

    saved = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
    with torch.device("meta"):
        network = AutoModelForImageTextToText.from_config(
            config, dtype=saved if dtype == "auto" else getattr(torch, dtype)
        ).requires_grad_(False)
        if quantization is not None:
            quantise(decoder_of(network).layers, quantization)
        network = network.eval() if lora is None else lora(network.eval())
        network = network if cast is None else network.to(cast)
    if lora is None:
        train_language(network)
    if fused:
        fuse(network)
    if gradient_checkpointing:
        checkpoint_layers(network)
    weightless(network)
    return network


def shares_of(network: Any) -> Shares:  # noqa: ANN401
    """Weigh a policy's parts."""
    base, decoder = base_of(network), decoder_of(network)
    whole, encoder = weigh(network), weigh(base.model, besides=decoder)
    layers = [weigh(layer) for layer in decoder.layers]
    largest = max(layers, key=lambda one: one.bytes)
    return Shares(
        language=whole.frozen_bytes.total() - encoder.frozen_bytes.total(),
        encoder=encoder.frozen_bytes.total(),
        trained=whole.trained_bytes.total(),
        trained_numbers=whole.trained,
        largest_layer=largest.bytes,
        root=whole.bytes - encoder.bytes - sum(one.bytes for one in layers),
        trained_in_layer=largest.trained_bytes.total(),
    )


def count(
    network: Any,  # noqa: ANN401
    batch: PreferenceBatch,
    layout: Layout,
    *,
    reference: ReferenceKind = "adapters_off",
    autocast: torch.dtype | None = None,
    features_kept: bool = False,
    on_cuda: bool = False,
) -> Counted:
    """Take a step on fakes.

    Args:
        network: A skeleton.
        batch: What one device gets.
        layout: How it lies before the model.
        reference: Where its log-probs come from.
        autocast: The type that mixed precision computes in.
        features_kept: Whether the images were encoded before.
        on_cuda: Count what attention keeps there. The rest is what the CPU's code keeps.

    Returns:
        Bytes and operations of the step.

    Raises:
        ValueError: A prompt has another number of places than its image fills.
        NotCarriedError: The layout does not know the model.
    """
    laid = layout(network, batch)
    if laid.packed is not None:  # what it finds out of its runs when asked, no fake tensor can
        for name in ("depth", "run", "stop", "read"):
            getattr(laid.packed, name)
    again = trains_encoder(network) and not features_kept
    encoder = Encoder(0, 0) if features_kept or again else encode(network, batch, autocast)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    places = int((laid.inputs["input_ids"] == image_token_of(network)).sum())
    live, mixed = Live(), torch.autocast("cpu", autocast) if autocast is not None else nullcontext()
    of_images = places_of(network, batch)  # what is in a tensor, can be asked here only
    with FakeTensorMode(allow_non_fake_inputs=True):
        features = blank_features(network, places)
        given = 0 if again else features.numel() * features.element_size()
        with live:
            with mixed:
                if again:
                    with live.during("encoder"):
                        features = encoded(network, batch, laid, of_images)
                if reference != "cached":
                    off = adapters_off(network) if reference == "adapters_off" else nullcontext()
                    with live.during("reference"), torch.no_grad(), off:
                        logps(network, laid, encoded(network, batch, laid, of_images) if again else features)
                with live.during("policy"):
                    scored = logps(network, laid, features).sum()
            forward, kept = live.peak, live.now
            live.rest()
            with live.during("backward"), _gradients_aside(trained, live):
                scored.backward()
    more = _more_on_cuda(network, laid, autocast or features.dtype) if on_cuda else 0
    layers = sum("forward" not in layer.__dict__ for layer in decoder_of(network).layers)  # those that keep theirs
    return Counted(
        forward=max(forward + given + more * layers, encoder.peak),
        backward=live.peak_besides + given + more * max(1, layers),
        fresh=live.peak + given + more * max(1, layers),
        kept=kept + given + more * layers,
        operations={"encoder": encoder.operations, **live.operations},
    )


def _more_on_cuda(network: Any, laid: Laid, dtype: torch.dtype) -> int:  # noqa: ANN401
    """Return the bytes of keys and values that a layer's attention keeps on CUDA more than on the CPU.

    There they are gathered, sequence by sequence, so those of a prompt are kept for each of its branches; but they are
    not repeated where several heads share them.
    """
    if laid.packed is None or laid.packed.blocks is not None or dtype.itemsize != 2:
        return 0
    config = base_of(network).config.get_text_config()
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    gathered = len(varlen_index(laid.packed).keys)
    return 2 * width * dtype.itemsize * (gathered * shared - laid.packed.size * heads)


def blank_features(network: Any, places: int) -> Tensor:  # noqa: ANN401
    """Return what stands for encoded images, (places, D)."""
    weight = base_of(network).get_input_embeddings().weight
    return weight.new_zeros(places, weight.shape[1])


def encode(network: Any, batch: PreferenceBatch, autocast: torch.dtype | None = None) -> Encoder:  # noqa: ANN401
    """Encode the images of a batch on fakes.

    Where the encoder asks what is in a tensor, or runs in the model's forward only, it is reckoned by its weights: two
    operations for each of them and each patch.
    """
    live, mixed = Live(), torch.autocast("cpu", autocast) if autocast is not None else nullcontext()
    if takes_features(network):
        places = places_of(network, batch)
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), live, torch.no_grad(), mixed:
                encode_images(network, images_of(network, batch), places)
            return Encoder(live.peak, sum(live.operations.values()))
        except DATA_DEPENDENT:
            gc.collect()
    weights = weigh(base_of(network).model, besides=decoder_of(network))
    pixels = next(value for value in batch.images.values() if value.is_floating_point())
    patches = sum(int((prompt["input_ids"] == image_token_of(network)).sum()) for prompt in batch.prompts)
    return Encoder(3 * pixels.numel() * pixels.element_size(), 2 * weights.frozen * patches)


def places_of(network: Any, batch: PreferenceBatch) -> list[int]:  # noqa: ANN401
    """Count the tokens that each of the G images fills."""
    token, pairs = image_token_of(network), zip(batch.image_of, batch.prompts, strict=True)
    found = {image: int((prompt["input_ids"] == token).sum()) for image, prompt in pairs}
    return [found[image] for image in range(len(batch.image_ids))]


def images_of(network: Any, batch: PreferenceBatch) -> dict[str, Tensor]:  # noqa: ANN401
    """Return what the model takes for the images, in its type."""
    dtype = base_of(network).get_input_embeddings().weight.dtype
    return {key: one.to(dtype) if one.is_floating_point() else one for key, one in batch.images.items()}


def encoded(network: Any, batch: PreferenceBatch, laid: Laid, places: list[int]) -> Tensor:  # noqa: ANN401
    """Encode the images of a batch, for an encoder that is trained.

    Args:
        network: A skeleton.
        batch: What one device gets.
        laid: The same as it lies before the model.
        places: Of each image.

    Returns:
        (places of images, D), as they come in the rows.

    Raises:
        ValueError: The encoder asks what is in a tensor.
    """
    try:
        images = encode_images(network, images_of(network, batch), places).images
    except DATA_DEPENDENT as error:
        raise ValueError(
            f"what it takes to train the vision tower of {type(base_of(network)).__name__} cannot be counted: keep "
            "lora.target_modules to the language model"
        ) from error
    return torch.cat([images[place].tokens for place in laid.image_order])


def logps(network: Any, laid: Laid, features: Tensor) -> Tensor:  # noqa: ANN401
    """Score as synthalign.dpo.logps does, but for the model's own look at which tokens are an image's.

    Args:
        network: The policy, with or without weights.
        laid: A batch as it lies before it.
        features: (places of images, D).

    Returns:
        (N,), the log-prob of every scored token.
    """
    base, decoder = base_of(network), decoder_of(network)
    ids = laid.inputs["input_ids"]
    embedded = base.get_input_embeddings()(ids)
    mask = (ids == image_token_of(network))[..., None].expand_as(embedded)
    embedded = embedded.masked_scatter(mask, features.to(embedded.dtype))
    others = {"position_ids": laid.inputs["position_ids"]} if "position_ids" in laid.inputs else {}
    if (present := laid.inputs.get("attention_mask")) is not None:
        size = present.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool).tril()
        others["attention_mask"] = causal[None, None] & present.bool()[:, None, None]
    with attending(decoder, laid.packed) as besides:
        hidden = decoder(inputs_embeds=embedded, use_cache=False, **others, **besides).last_hidden_state
    return token_logps(hidden.flatten(0, 1)[laid.scored], base.get_output_embeddings(), laid.targets, softcap_of(base))


@contextmanager
def _gradients_aside(parameters: list[nn.Parameter], live: Live) -> Iterator[None]:
    """Set each gradient aside when it is whole, and throw all away in the end."""

    def put_aside(parameter: Tensor) -> None:
        assert parameter.grad is not None
        live.aside += parameter.grad.numel() * parameter.grad.element_size()

    with ExitStack() as stack:
        for parameter in parameters:
            stack.callback(parameter.register_post_accumulate_grad_hook(put_aside).remove)
            stack.callback(setattr, parameter, "grad", None)
        yield
