import torch

from synthalign.world import models
from synthalign.world.course import IGNORED, Encoder, answer_loss
from synthalign.world.train import train_response_reward, train_vlm


def test_labels_stand_on_the_answer_alone():
    encoder = Encoder(models.make_tokenizer())
    ids, labels = encoder.rows([("Is there a cup", "No."), ("Is there a", "Yes, there is.")])
    assert ids.shape == labels.shape == (2, 8)
    answer = encoder.ids("No.")
    assert labels[0].tolist() == [IGNORED] * 4 + list(answer) + [IGNORED] * 2
    assert ids[0, 6:].tolist() == [models.PAD] * 2


def test_a_row_weighs_by_the_root_of_its_length():
    labels = torch.tensor([[IGNORED, 1, IGNORED, IGNORED, IGNORED], [IGNORED, 1, 1, 1, 1]])
    total, weight = answer_loss(torch.zeros(2, 5, 3), labels, torch.zeros(4, 3))
    assert weight.item() == 1 + 4 / 2
    torch.testing.assert_close(total / weight, torch.tensor(4.0).log())  # even odds over four words


def test_the_same_seed_trains_the_same_models_and_the_reward_keeps_its_backbone_while_comparing():
    encoder = Encoder(models.make_tokenizer())
    size = len(encoder.tokenizer)

    def train() -> tuple:
        torch.manual_seed(0)
        vlm, reward = models.make_vlm(size), models.make_response_reward(size)
        eye = vlm.model.vision_tower.embeddings.patch_embedding.weight.clone()
        backbone = train_vlm(vlm, encoder, 0, clean_steps=1, biased_steps=1)
        assert torch.equal(eye, vlm.model.vision_tower.embeddings.patch_embedding.weight)
        train_response_reward(reward, backbone, encoder, 0, answer_steps=(0, 0), compare_steps=1)
        for name, weight in backbone.items():
            if name.startswith(("layers.", "embed_tokens.")):
                assert torch.equal(weight, reward.model.state_dict()[name])
        return vlm.state_dict(), reward.state_dict()

    for one, other in zip(train(), train(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
