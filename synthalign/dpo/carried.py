"""Whether a layout carries a model exactly: tried on a pair before a run trusts it."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from synthalign.dpo.batch import PreferenceBatch
from synthalign.dpo.features import Features
from synthalign.dpo.layouts import Laid, Layout, Rows
from synthalign.dpo.logps import scored_logps
from synthalign.dpo.policy import adapters_off
from synthalign.vlm.attention import NotCarriedError
from synthalign.vlm.families import base_of
from synthalign.vlm.tried import tolerance


def why_not_carried(layout: Layout, network: Any, batch: PreferenceBatch, features: Features) -> str | None:  # noqa: ANN401
    """Score a pair or two under a layout, as plain rows, and by the model's own logits, adapters off; say what differs.

    Args:
        layout: The layout to try.
        network: The model.
        batch: Pairs; those about the image with most of them are tried, two at most.
        features: The batch's images, encoded with the adapters off, unless those leave the encoder alone.

    Returns:
        None if the layout may be trusted; otherwise a reason, to be put behind "the model is not carried: ".

    Raises:
        ValueError: Not even the rows' log-probs are those of the model's own logits.
    """
    image = max(batch.image_of, key=batch.image_of.count)
    some = take(batch, [pair for pair, place in enumerate(batch.image_of) if place == image][:2])
    with torch.no_grad(), adapters_off(network):
        laid = Rows()(network, some)
        expected = scored_logps(network, laid, features)
        _check_own_logits(network, laid, features, expected)
        if isinstance(layout, Rows):
            return None
        try:
            found = scored_logps(network, layout(network, some), features)
        except torch.OutOfMemoryError:
            raise
        except NotCarriedError as error:
            return str(error)
        except Exception as error:  # any model may be given, and fails in its own way
            return f"its forward fails with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    off = float((found - expected).abs().mean())
    return None if off <= tolerance(network) else f"its log-probs are off by {off:.2g} nats a token"


def _check_own_logits(network: Any, laid: Laid, features: Features, expected: Tensor) -> None:  # noqa: ANN401
    """Compare the first sequence with the model's own way from states to logits."""
    length = laid.lengths[0]
    row = {key: value[:1] for key, value in laid.inputs.items()}
    output = network(
        **row, **features.inputs(laid.image_order[:1]), use_cache=False, logits_to_keep=laid.scored[:length]
    )
    logits = output.logits[0]
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    off = float((logps.gather(-1, laid.targets[:length, None])[:, 0] - expected[:length]).abs().mean())
    if not off <= tolerance(network):
        raise ValueError(
            f"{type(base_of(network)).__name__} makes its logits in a way that is not supported: log-probs are off by "
            f"{off:.2g} nats a token"
        )


def take(batch: PreferenceBatch, pairs: list[int]) -> PreferenceBatch:
    """Return some pairs of a batch; its images stay as they are."""
    return replace(
        batch,
        ids=[batch.ids[pair] for pair in pairs],
        prompts=[batch.prompts[pair] for pair in pairs],
        chosen=[batch.chosen[pair] for pair in pairs],
        rejected=[batch.rejected[pair] for pair in pairs],
        image_of=[batch.image_of[pair] for pair in pairs],
    )
