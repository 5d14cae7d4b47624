"""A tiny Llama's opinion means nothing, but it is the one of its logits."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import writers

from synthalign.evals.judges.asking import PROMPT, asked, hash_of
from synthalign.evals.judges.local import OWN_RATING, LocalJudge
from synthalign.evals.mmhal.benchmark import parse_rating
from synthalign.vlm import LLM

SHORT = "{contents} {question} {reference} {answer}"
ROWS: tuple[Any, ...] = (
    [["Cup"], ["Dog", "Lawn"], [], ["Cup"]],
    ["What colour is it?", "What is it?", "Why?", "What colour is it?"],
    ["Red.", "A dog.", "It rains.", "Red."],
    ["Blue.", "A dog that runs on a lawn.", "No idea.", "Red."],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = writers.build_llm(tmp_path_factory.mktemp("judge") / "tiny-judge")
    template = made / "chat_template.jinja"  # the builder's has no beginning of a reply
    template.write_text(template.read_text() + "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}")
    return made


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    file = tmp_path / "short.txt"
    file.write_text(SHORT)
    return file


def judge(folder: Path, prompt: Path | None, analysis_tokens: int = 0, **settings: Any) -> LocalJudge:
    llm = LLM(model=str(folder), device="cpu", **({"batch_size": 3} | settings))
    return LocalJudge(llm=llm, prompt=prompt, analysis_tokens=analysis_tokens)


def by_hand(llm: LLM, text: str, begun: str) -> torch.Tensor:
    """Probabilities of the seven digits, one row, one plain forward."""
    ids = [
        llm.tokenizer(f"{llm.prompt(text)}{begun} {digit}", add_special_tokens=False).input_ids for digit in range(7)
    ]
    with torch.no_grad():
        logits = llm.network(input_ids=torch.tensor([ids[0][:-1]])).logits[0, -1]
    return logits[[one[-1] for one in ids]].softmax(-1)


def test_the_rating_is_the_likeliest_digit_of_a_plain_forward(folder, prompt):
    one = judge(folder, prompt)
    judgements = one.judge(*ROWS)
    for judgement, text in zip(judgements, asked(SHORT, *ROWS), strict=True):
        probs = by_hand(one.llm, text, "Rating:")
        expected = float(probs @ torch.arange(7.0))
        assert judgement.score == int(probs.argmax()) and judgement.parsed
        assert f"Expected: {expected:.3f}. Probabilities of 0 to 6: " in judgement.text
        assert [float(p) for p in judgement.text.rpartition(": ")[2].rstrip(".").split(", ")] == pytest.approx(
            probs.tolist(), abs=6e-4
        )
    assert len({judgement.text for judgement in judgements}) == 4


def test_our_own_prompt_is_asked_by_default(folder):
    one = judge(folder, None)
    (judgement,) = one.judge(*(column[:1] for column in ROWS))
    (text,) = asked(PROMPT, *(column[:1] for column in ROWS))
    assert judgement.score == int(by_hand(one.llm, text, "Rating:").argmax())


def test_the_text_of_a_judgement_is_read_as_its_rating(folder, prompt):
    for analysis_tokens in (0, 6):
        for judgement in judge(folder, prompt, analysis_tokens).judge(*ROWS):
            assert parse_rating(judgement.text) == judgement


def test_an_analysis_comes_first_and_changes_what_is_rated(folder, prompt):
    one = judge(folder, prompt, analysis_tokens=6)
    analyst = LLM(model=str(folder), device="cpu", max_new_tokens=6)
    texts = asked(SHORT, *ROWS)
    for judgement, text, analysis in zip(one.judge(*ROWS), texts, analyst.complete(texts), strict=True):
        begun = f"{analysis.text}\nRating:"
        assert judgement.text.startswith(f"{begun} {judgement.score}\n")
        assert judgement.score == int(by_hand(analyst, text, begun).argmax())


@pytest.mark.parametrize(
    ("analysis", "kept"),
    [
        ("Good.\n**Rating:** 6\nRating: 2", "Good."),
        ("rating: 1", ""),
        ("Fine. An overrating : 5", "Fine. An"),
        ("A low rating is due.", "A low rating is due."),
    ],
)
def test_a_rating_that_an_analysis_comes_to_is_left_to_the_digits(analysis, kept):
    assert OWN_RATING.sub("", analysis) == kept


def test_ratings_do_not_depend_on_the_batch_or_on_the_order(folder, prompt):
    alone, together = judge(folder, prompt, batch_size=1), judge(folder, prompt, batch_size=4)
    turned = together.judge(*(column[::-1] for column in ROWS))[::-1]
    scores = [one.score for one in alone.judge(*ROWS)]
    assert scores == [one.score for one in together.judge(*ROWS)] == [one.score for one in turned]


def test_who_judged_is_the_folders_name_its_content_and_the_prompts_hash(folder, prompt, tmp_path):
    about = judge(folder, prompt).about()
    assert about["judge"] == "tiny-judge" and about["judge_prompt"] == hash_of(SHORT)
    assert about["judge_rating"] == "the likeliest digit, at once"
    assert judge(folder, None, 9).about()["judge_rating"] == "the likeliest digit, after up to 9 tokens of analysis"
    moved = shutil.copytree(folder, tmp_path / "tiny-judge")
    assert judge(moved, prompt).about() == about
    with (moved / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    assert judge(moved, prompt).about()["judge_revision"] != about["judge_revision"]
    assert judge(folder, prompt, quantization="nf4").about()["judge"] == "tiny-judge (nf4)"


def test_weights_are_freed_and_load_again(folder, prompt):
    one = judge(folder, prompt)
    first = one.judge(*ROWS)
    one.release()
    assert "network" not in one._llm.__dict__ and "network" not in one.llm.__dict__
    assert one.judge(*ROWS) == first


def test_nothing_to_judge_gives_no_judgements(folder, prompt):
    assert judge(folder, prompt).judge([], [], [], []) == judge(folder, prompt, 4).judge([], [], [], []) == []


def test_a_negative_length_of_analysis_is_refused(folder, prompt):
    with pytest.raises(ValueError, match="analysis_tokens must be >= 0, got -1"):
        judge(folder, prompt, -1)
