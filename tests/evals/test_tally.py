import json
import random

import pytest
import torch

from synthalign.evals.ask import share
from synthalign.evals.chair import CHAIR
from synthalign.evals.mmhal.benchmark import TYPES, MMHal, parse_rating
from synthalign.evals.pope import POPE
from synthalign.evals.tally import Tally
from synthalign.types import Reply


class Echo:
    def about(self):
        return {"judge": "echo"}

    def judge(self, contents, questions, references, answers):
        return [parse_rating(answer) for answer in answers]

    def release(self):
        pass


@pytest.fixture
def evals(tmp_path, images):
    names = sorted(path.name for path in images.iterdir())
    pope = [
        {"question_id": n, "image": name, "text": f"{n}?", "label": "yes" if n % 3 else "no"}
        for n, name in enumerate(names * 2)
    ]
    mmhal = [
        {
            "question_type": kind,
            "image_id": name,
            "image_src": name,
            "image_content": [],
            "question": "?",
            "gt_answer": "",
        }
        for kind, name in zip(TYPES, names, strict=True)
    ]
    captions = [{"id": name, "image": name, "question": "?", "objects": ["cup"]} for name in names]
    for file, rows in (("pope.json", pope), ("mmhal.json", mmhal), ("captions.json", captions)):
        (tmp_path / file).write_text(json.dumps(rows))
    (tmp_path / "objects.txt").write_text("cup\ndog\n")
    return [
        POPE(files={"a": tmp_path / "pope.json", "b": tmp_path / "pope.json"}, images=images),
        MMHal(file=tmp_path / "mmhal.json", images=images, judge=Echo()),
        CHAIR(file=tmp_path / "captions.json", images=images, synonyms=tmp_path / "objects.txt"),
    ]


def judged(evaluation, questions):
    rng = random.Random(0)
    replies = {
        question.id: Reply(rng.choice(["No", "Yes", "A cup.", "A dog", "Rating: 5", ""]), False, rng.gauss(0, 3))
        for question in evaluation.questions()
    }
    return evaluation.verdicts(questions, [replies[question.id] for question in questions])


@pytest.mark.parametrize("ranks", [1, 3, 20])  # of eight images: uneven shares, and ranks without any
@pytest.mark.parametrize("which", [0, 1, 2], ids=["pope", "mmhal", "captions"])
def test_any_shares_add_up_to_the_whole(evals, which, ranks):
    evaluation = evals[which]
    whole = evaluation.tally(evaluation.questions(), judged(evaluation, evaluation.questions()))
    total = torch.zeros_like(whole)
    for rank in range(ranks):
        mine = [question for of_image in share(evaluation.questions(), rank, ranks) for question in of_image]
        total += evaluation.tally(mine, judged(evaluation, mine))
    assert whole.dtype == torch.float64 and whole.sum() > 0
    assert torch.equal(total, whole)
    assert evaluation.report(total) == evaluation.report(whole)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["pope", "mmhal", "captions"])
def test_no_questions_tally_to_zeros_of_the_same_length(evals, which):
    evaluation = evals[which]
    whole = evaluation.tally(evaluation.questions(), judged(evaluation, evaluation.questions()))
    assert torch.equal(evaluation.tally([], []), torch.zeros_like(whole))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["pope", "mmhal", "captions"])
def test_the_metric_computes_the_report_of_all_its_updates(evals, which):
    evaluation = evals[which]
    questions = evaluation.questions()
    metric = Tally(evaluation)
    for part in (questions[:3], questions[:0], questions[3:]):
        metric.update(part, judged(evaluation, part))
    assert metric.compute() == evaluation.report(evaluation.tally(questions, judged(evaluation, questions)))
    metric.reset()
    metric.update([], [])
    assert metric.total.sum() == 0
