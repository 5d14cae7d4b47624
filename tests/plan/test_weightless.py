"""Weights that are not there are weighed as those that are."""

import pytest
import tiny
from torch import nn

from synthalign.dpo.policy import LoRA
from synthalign.plan import quantise, weigh, weightless
from synthalign.planning.step import skeleton
from synthalign.vlm import load_vlm
from synthalign.vlm.families import base_of, decoder_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.build_llava(tmp_path_factory.mktemp("llava64"), hidden_size=64))


def bytes_in(network):
    """Count all tensors of a loaded model, those in which bitsandbytes keeps scales included."""
    tensors = [*network.parameters(), *network.buffers()]
    for parameter in network.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        if (scales := getattr(parameter, "SCB", None)) is not None:
            tensors.append(scales)
    return sum({one.data_ptr(): one.numel() * one.element_size() for one in tensors}.values())


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_a_skeleton_weighs_what_the_loaded_model_does(folder, quantization):
    from transformers import AutoConfig

    loaded = load_vlm(folder, dtype="bfloat16", quantization=quantization)
    config = AutoConfig.from_pretrained(folder)
    empty = skeleton(config, dtype="bfloat16", quantization=quantization, lora=LoRA())
    # codes are the same for all layers: of a real model they are hundreds of bytes for megabytes
    assert weigh(empty).frozen_bytes.total() == pytest.approx(bytes_in(loaded), rel=0.02)


def test_quantised_numbers_are_counted_and_not_their_bytes(folder):
    layers = nn.Sequential(nn.Linear(128, 64, bias=False, device="meta"))
    quantise(layers, "nf4")
    found = weigh(layers)
    assert found.frozen == 128 * 64
    # half a byte a number, one for 64, a float for 64 x 256, and 16 + 256 codes with an offset
    assert found.frozen_bytes == {"nf4": 4096 + 128 + 4 + 4 * 273}


def test_what_is_shared_or_left_out_counts_once_or_not_at_all():
    one = nn.Linear(4, 3, bias=False, device="meta")
    two = nn.Sequential(one, one, nn.Linear(3, 2, bias=False, device="meta").requires_grad_(False))
    assert weigh(two).bytes == 4 * (12 + 6) and weigh(two, besides=one).frozen == 6
    assert (weigh(two).trained, weigh(two).frozen) == (12, 6)


def test_weights_that_take_no_memory_are_ordinary_parameters():
    network = nn.Sequential(nn.Linear(1000, 1000, device="meta"), nn.Linear(1000, 10, device="meta"))
    network[1].requires_grad_(False)
    weightless(network)
    assert {type(one) for one in network.parameters()} == {nn.Parameter}
    assert [one.requires_grad for one in network.parameters()] == [True, True, False, False]
    assert len({one.untyped_storage().data_ptr() for one in network.parameters()}) == 1
    first, last = network.parameters(), [*network.parameters()][2]
    assert last.shape == (10, 1000) and last.is_contiguous()
    assert {one.device.type for one in first} == {"cpu"}


def test_tied_weights_stay_tied():
    network = nn.Sequential(nn.Linear(4, 4, bias=False, device="meta"), nn.Linear(4, 4, bias=False, device="meta"))
    network[1].weight = network[0].weight
    weightless(network)
    assert network[0].weight is network[1].weight


def test_the_language_model_alone_is_quantised(folder):
    from transformers import AutoConfig

    network = skeleton(AutoConfig.from_pretrained(folder), quantization="nf4", lora=LoRA())
    quantised = {name for name, one in decoder_of(network).named_modules() if hasattr(one, "kind")}
    assert len(quantised) == 2 * 7
    assert not any(hasattr(one, "kind") for one in base_of(network).model.vision_tower.modules())
