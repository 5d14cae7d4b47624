"""The judge's score is what the model itself says of yes and no, for each image on its own."""

import json
import shutil

import pytest
import torch
from PIL import Image

from synthalign.rewards.vlm_judge import VLMJudge
from synthalign.tables import ImageFiles
from synthalign.types import ResponseReward
from synthalign.vlm import VLM, Chat

IMAGES = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
ROWS = [  # image, question, response
    (0, "What colour is the cup?", "Red."),
    (0, "What colour is the cup?", "The cup is green and there is a dog."),
    (1, "What colour is the cup?", "Red."),
    (1, "Is there a dog?", "No."),
]


def scores(reward: ResponseReward, rows: list[int] | None = None) -> torch.Tensor:
    picked = [ROWS[row] for row in (range(4) if rows is None else rows)]
    images = [IMAGES[image] for image, _, _ in picked]
    return reward.score(["a cup"] * len(picked), images, [q for _, q, _ in picked], [r for _, _, r in picked])


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_score_is_the_difference_of_the_models_own_logits(batch_size, tiny_llava):
    wording = "Q: {question} A: {response} True?"
    got = scores(
        VLMJudge(judge=VLM(model=str(tiny_llava), batch_size=batch_size, temperature=3.0), question_format=wording)
    )
    assert (got.shape, got.dtype) == ((4,), torch.float32)

    from transformers import AutoModelForImageTextToText

    model, chat = AutoModelForImageTextToText.from_pretrained(tiny_llava).eval(), Chat(model=str(tiny_llava))
    words = [["Yes", "yes"], ["No", "no"]]
    yes, no = ([chat.tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in some] for some in words)
    assert [sorted(set(yes)), sorted(set(no))] == list(chat.yes_no_ids)
    expected = []
    for image, question, response in ROWS:
        text = f"<s>USER: <image>\n Q: {question} A: {response} True? ASSISTANT:"
        inputs = chat.processor(images=IMAGES[image], text=text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            odds = model(**inputs).logits[0, -1].exp()
        expected.append((odds[sorted(set(yes))].sum() / odds[sorted(set(no))].sum()).log())
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-3, atol=1e-3)


def test_the_image_and_the_response_count(tiny_llava):
    got = scores(VLMJudge(judge=VLM(model=str(tiny_llava))))
    assert got[0] != got[1] and got[0] != got[2]


def test_equal_questions_of_an_image_are_asked_once(tiny_llava):
    reward = VLMJudge(judge=VLM(model=str(tiny_llava)))
    expected = scores(reward)
    got = scores(reward, [0, 1, 0, 2, 2, 0])
    torch.testing.assert_close(got, expected[[0, 1, 0, 2, 2, 0]], rtol=1e-4, atol=1e-4)
    assert got[0] == got[2] == got[5] and got[3] == got[4]


def test_images_that_are_opened_when_asked_for_are_told_apart(tiny_llava, tmp_path):
    reward = VLMJudge(judge=VLM(model=str(tiny_llava)))
    paths = [tmp_path / f"{number}.png" for number, _ in enumerate(ROWS)]
    for path, (image, _, _) in zip(paths, ROWS, strict=True):
        IMAGES[image].save(path)
    questions, responses = [question for _, question, _ in ROWS], [response for _, _, response in ROWS]
    got = reward.score(["a cup"] * 4, ImageFiles(paths), questions, responses)
    torch.testing.assert_close(got, scores(reward))


def test_the_drawing_prompt_may_be_told(tiny_llava):
    wording = "{prompt} {question} {response}"
    told = VLMJudge(judge=VLM(model=str(tiny_llava)), question_format=wording)
    plain = VLMJudge(judge=VLM(model=str(tiny_llava)), question_format="a cup {question} {response}")
    assert torch.equal(scores(told), scores(plain))


def test_nothing_scores_nothing_and_loads_nothing(tiny_llava):
    reward = VLMJudge(judge=VLM(model=str(tiny_llava)))
    assert reward.score([], [], [], []).shape == (0,)
    assert "network" not in vars(reward.asked)


def test_a_model_that_cannot_tell_yes_from_no_is_refused(tiny_llava, tmp_path):
    folder = shutil.copytree(tiny_llava, tmp_path / "mute")
    described = json.loads((folder / "tokenizer.json").read_text())
    described["model"]["merges"] = []  # every byte is a token: both words begin with the same blank
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="cannot judge: its tokenizer does not tell Yes from No"):
        scores(VLMJudge(judge=VLM(model=str(folder))))


@pytest.mark.parametrize(
    ("wording", "line"),
    [
        ("{question}", "leaves out {response}"),
        ("{response}", "leaves out {question}"),
        ("{question} {response} {answer}", "knows only {prompt}, {question}, {response}"),
    ],
)
def test_a_wording_that_cannot_be_filled_is_refused(wording, line, tiny_llava):
    with pytest.raises(ValueError) as caught:
        VLMJudge(judge=VLM(model=str(tiny_llava)), question_format=wording)
    assert line in str(caught.value)


def test_released_weights_are_loaded_again(tiny_llava):
    reward = VLMJudge(judge=VLM(model=str(tiny_llava)))
    expected = scores(reward)
    assert "network" in vars(reward.asked)
    reward.release()
    assert "network" not in vars(reward.asked)
    assert torch.equal(scores(reward), expected)
