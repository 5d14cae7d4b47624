"""Any model with decoder layers can be kept in 4 or 8 bits; its heads stay as they are."""

import pytest
import tiny
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from synthalign.weights import DType, load_network


@pytest.fixture(scope="module")
def tiny_scorer(tmp_path_factory):
    return tiny.build_reward(tmp_path_factory.mktemp("reward"))


@pytest.mark.parametrize(("quantization", "kind"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_a_reward_model_keeps_its_head(quantization, kind, tiny_scorer):
    scorer = load_network(AutoModelForSequenceClassification, str(tiny_scorer), quantization=quantization)
    plain = load_network(AutoModelForSequenceClassification, str(tiny_scorer))
    assert type(scorer.score) is torch.nn.Linear and torch.equal(scorer.score.weight, plain.score.weight)
    assert {type(part).__name__ for part in scorer.modules() if "Linear" in type(part).__name__} == {kind, "Linear"}
    assert type(scorer.model.layers[0].self_attn.q_proj).__name__ == kind
    assert not scorer.training
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        assert torch.isfinite(scorer(input_ids=ids).logits).all()


def test_a_model_without_decoder_layers_is_one_line(tmp_path):
    folder = tiny.build_clip(tmp_path / "clip")
    with pytest.raises(ValueError, match=r"^model '.*' cannot be quantised: CLIPModel shows no decoder layers$"):
        load_network(AutoModel, str(folder), quantization="nf4")


def test_four_bit_products_are_computed_in_the_dtype_of_the_model(tiny_scorer):
    cases: list[tuple[DType, torch.dtype]] = [("auto", torch.float32), ("bfloat16", torch.bfloat16)]
    for dtype, expected in cases:
        scorer = load_network(AutoModelForSequenceClassification, str(tiny_scorer), dtype=dtype, quantization="nf4")
        assert scorer.model.layers[0].mlp.up_proj.compute_dtype == expected
        assert scorer.score.weight.dtype == expected
