"""No answer is judged twice, whatever happens to the processes that judge."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from synthalign.clients import ServedLLM
from synthalign.evals.judges.kept import LOCKS, KeptJudgements
from synthalign.evals.judges.served import ServedJudge
from synthalign.types import Judge, Judgement

asked: list[str] = []


@pytest.fixture(autouse=True)
def nobody_asked() -> None:
    asked.clear()


@dataclass(frozen=True, kw_only=True)
class Words:
    """A judge who rates an answer by its words; ``asked`` has those it was asked for."""

    revision: str = "1"
    fails_on: str | None = None
    strictness: int = 0

    def about(self) -> dict[str, str]:
        return {"judge": "words", "judge_revision": self.revision, "judge_prompt": "none"}

    def judge(self, contents: Any, questions: Any, references: Any, answers: Any) -> list[Judgement]:
        if self.fails_on in answers:
            raise OSError("the line went dead")
        asked.extend(answers)
        return [Judgement(min(len(answer.split()), 6), f"{answer} ü", bool(answer)) for answer in answers]

    def release(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """A judge who gives these ratings."""

    ratings: list[Any]

    def about(self) -> dict[str, str]:
        return {"judge": "script", "judge_revision": "1", "judge_prompt": "none"}

    def judge(self, contents: Any, questions: Any, references: Any, answers: Any) -> list[Judgement]:
        return [Judgement(rating, "", True) for rating in self.ratings]

    def release(self) -> None:
        pass


def rows(*answers: str) -> tuple[Any, ...]:
    n = len(answers)
    return [["Cup", "Table"]] * n, ["What?"] * n, ["A cup."] * n, list(answers)


def test_an_answer_is_judged_once_across_calls_and_objects(tmp_path):
    folder = tmp_path / "kept"
    first = KeptJudgements(inner=Words(), folder=folder).judge(*rows("a", "a b", "a", ""))
    assert asked == ["a", "a b", ""]  # equal ones once, in order
    assert first == [Judgement(1, "a ü", True), Judgement(2, "a b ü", True), first[0], Judgement(0, " ü", False)]
    again = KeptJudgements(inner=Words(), folder=folder).judge(*rows("", "new one", "a b"))
    assert again == [first[3], Judgement(2, "new one ü", True), first[1]]
    assert asked == ["a", "a b", "", "new one"]


def test_whatever_a_judgement_depends_on_asks_again(tmp_path):
    folder = tmp_path / "kept"
    columns = rows("a")
    KeptJudgements(inner=Words(), folder=folder).judge(*columns)
    for changed in ({"revision": "2"}, {"strictness": 1}):
        KeptJudgements(inner=Words(**changed), folder=folder).judge(*columns)
    for column, value in enumerate([["Cup"], "Which?", "Two cups.", "a cup"]):
        other = [*columns[:column], [value], *columns[column + 1 :]]
        KeptJudgements(inner=Words(), folder=folder).judge(*other)
    assert asked == ["a"] * 6 + ["a cup"]
    moved = folder.rename(tmp_path / "elsewhere")
    KeptJudgements(inner=Words(), folder=moved, rows_at_once=1).judge(*columns)
    assert len(asked) == 7


def test_what_is_kept_can_be_read_by_people(tmp_path):
    KeptJudgements(inner=Words(), folder=tmp_path / "kept").judge(*rows("it is"))
    (file,) = (tmp_path / "kept").rglob("*.json")
    assert "it is ü" in file.read_text("utf-8")
    assert json.loads(file.read_text("utf-8")) == {
        "judge": "words",
        "judge_revision": "1",
        "judge_prompt": "none",
        "contents": ["Cup", "Table"],
        "question": "What?",
        "reference": "A cup.",
        "answer": "it is",
        "score": 2,
        "parsed": True,
        "judgement": "it is ü",
    }


def test_a_judge_that_fails_names_the_answer_and_loses_nothing(tmp_path):
    folder = tmp_path / "kept"
    columns = rows("a", "b", "c", "bad", "d")
    with pytest.raises(RuntimeError) as caught:
        KeptJudgements(inner=Words(fails_on="bad"), folder=folder, rows_at_once=2).judge(*columns)
    assert str(caught.value) == (
        "the judge failed on the answer 'bad' to 'What?': OSError: the line went dead; "
        f"what it said before is kept in {folder}"
    )
    assert asked == ["a", "b", "c"]
    with pytest.raises(RuntimeError, match="'bad'"):
        KeptJudgements(inner=Words(fails_on="bad"), folder=folder, rows_at_once=2).judge(*columns)
    assert asked == ["a", "b", "c"]


@pytest.mark.parametrize("ratings", [[7], [True], [3, 3], []])
def test_what_is_no_rating_of_each_answer_is_not_kept(tmp_path, ratings):
    kept = KeptJudgements(inner=Scripted(ratings=ratings), folder=tmp_path / "kept")
    with pytest.raises(ValueError, match="the judge failed on the answer 'a' to 'What\\?'"):
        kept.judge(*rows("a"))
    assert not [*(tmp_path / "kept").rglob("*.json")]


def test_a_damaged_file_is_named_and_not_taken_for_absent(tmp_path):
    kept = KeptJudgements(inner=Words(), folder=tmp_path / "kept")
    kept.judge(*rows("a"))
    (file,) = (tmp_path / "kept").rglob("*.json")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="is damaged: delete it"):
        kept.judge(*rows("a"))


def test_settings_that_cannot_be_meant_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; judgements are kept in a folder"):
        KeptJudgements(inner=Scripted(ratings=[]), folder=tmp_path / "file")
    with pytest.raises(ValueError, match="rows_at_once must be >= 1, got 0"):
        KeptJudgements(inner=Scripted(ratings=[]), folder=tmp_path, rows_at_once=0)


def test_a_config_names_judges_by_their_class_paths(tmp_path):
    parser = ArgumentParser()
    parser.add_argument("--judge", type=Judge)
    server: dict[str, Any] = {"base_url": "http://localhost:8000/v1", "model": "judge-1"}
    served = {"class_path": "synthalign.evals.judges.served.ServedJudge", "init_args": {"server": server}}
    kept = {"class_path": "synthalign.evals.judges.kept.KeptJudgements", "init_args": {"folder": "x", "inner": served}}
    judge = parser.instantiate(parser.parse_object({"judge": kept})).judge
    assert judge == KeptJudgements(inner=ServedJudge(server=ServedLLM(**server)), folder=Path("x"))
    assert judge.about() == judge.inner.about()


def test_a_judge_whose_settings_cannot_be_told_apart_is_refused(tmp_path):
    class Forgets:
        def __init__(self, temper: int) -> None:
            self.hidden = Words(strictness=temper)

        def about(self) -> dict[str, str]:
            return self.hidden.about()

        def judge(self, contents: Any, questions: Any, references: Any, answers: Any) -> list[Judgement]:
            return self.hidden.judge(contents, questions, references, answers)

        def release(self) -> None:
            pass

    with pytest.raises(ValueError, match="Forgets does not keep its arguments temper"):
        KeptJudgements(inner=Forgets(1), folder=tmp_path / "kept").judge(*rows("a"))


def processes(tmp_path: Path, what: str) -> list[str]:
    """Let processes judge, and return what their judges were asked."""
    script = Path(__file__).with_name("judging_processes.py")
    command = [sys.executable, str(script), str(tmp_path / "kept"), str(tmp_path / "log"), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return (tmp_path / "log").read_text().split()


def test_judgements_survive_a_kill_and_the_next_run_asks_for_the_rest_only(tmp_path):
    assert processes(tmp_path, "kill") == ["a", "bb", "ccc", "dddd", "ccc", "dddd"]
    files = [file for file in (tmp_path / "kept").rglob("*") if file.is_file() and file.name != LOCKS]
    assert len(files) == 4 and all(json.loads(file.read_text())["parsed"] for file in files)


def test_processes_at_once_judge_an_answer_once(tmp_path):
    assert sorted(processes(tmp_path, "together")) == ["a", "bb", "ccc", "dddd", "eeeee"]
