import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import saved_answers
import servers
import writers

from synthalign.cli import main
from synthalign.evals.mmhal import MMHal
from synthalign.evals.pope import POPE
from synthalign.evals.results import Results, write_results
from synthalign.evals.samples import sample_rows
from synthalign.world.judge import RuleJudge

TWO = "pope --questions coco_pope_random.json coco_pope_adversarial.json --answers "
BOTH = TWO + "answers_random.jsonl answers_adversarial.jsonl"
ONE = "pope --questions coco_pope_random.json --answers "
CHAIR = "chair --truth truth.jsonl --synonyms synonyms.txt --answers "
AMBER = "amber --data amber --answers "
MME = "mme --questions mme --tasks existence --answers "
MMHAL = "mmhal --questions template.json --answers filled.json"
JUDGED = "mmhal --questions template.json --judgements "


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for write in (saved_answers.pope, saved_answers.chair, saved_answers.amber, saved_answers.mme, saved_answers.mmhal):
        write(tmp_path)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], command: str) -> dict:
    """Score with --json and return the one object."""
    main(["score", *shlex.split(command), "--json"])
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(said.out)


def mistake(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """Run a command that must fail with nothing printed, and return its one line."""
    with pytest.raises(SystemExit) as stopped:
        main(["score", *shlex.split(command)])
    said = capsys.readouterr()
    assert (stopped.value.code, said.out) == (2, "")
    (line,) = said.err.splitlines()
    assert line.startswith("synthalign: error: ")
    return line.removeprefix("synthalign: error: ")


def test_pope_gives_every_split_and_their_mean(capsys):
    scored = printed(capsys, BOTH)
    assert (scored["benchmark"], scored["answers"]) == ("pope", 8)
    assert scored["about"]["parser"].startswith("official")
    metrics = scored["metrics"]
    want = {"accuracy": 3 / 4, "precision": 2 / 3, "recall": 1.0, "f1": 0.8, "yes_ratio": 3 / 4, "n": 4}
    assert {key: metrics[f"random/{key}"] for key in want} == pytest.approx(want)
    want = {"accuracy": 1 / 2, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "yes_ratio": 1 / 2, "n_unparsed": 1}
    assert {key: metrics[f"adversarial/{key}"] for key in want} == pytest.approx(want)
    assert metrics["mean/accuracy"] == 5 / 8


@pytest.mark.parametrize(
    "command",
    [
        "pope --questions random=coco_pope_random.json adversarial=coco_pope_adversarial.json "
        "--answers adversarial=answers_adversarial.jsonl random=answers_random.jsonl",
        TWO + "random=a1 adversarial=a2",
        TWO + "pope.jsonl",
    ],
    ids=["all named", "answers named", "one file of ours"],
)
def test_pope_finds_the_answers_of_each_split(command, folder, capsys):
    want = printed(capsys, BOTH + " --out pope.jsonl")["metrics"]
    (folder / "a1").write_bytes((folder / "answers_random.jsonl").read_bytes())
    (folder / "a2").write_bytes((folder / "answers_adversarial.jsonl").read_bytes())
    assert printed(capsys, command)["metrics"] == want


def test_a_file_of_another_name_is_a_split_of_that_name(folder, capsys):
    (folder / "coco_pope_random.json").rename("gqa.json")
    (folder / "answers_random.jsonl").rename("llava.jsonl")
    assert printed(capsys, "pope --questions gqa.json --answers llava.jsonl")["metrics"]["gqa/accuracy"] == 3 / 4


def test_a_file_may_have_an_equals_sign_in_its_name(folder, capsys):
    (folder / "coco_pope_random.json").rename("seed=1_random.json")
    command = "pope --questions seed=1_random.json --answers answers_random.jsonl"
    assert printed(capsys, command)["metrics"]["random/accuracy"] == 3 / 4


def test_answers_about_some_images_are_scored_as_those_were_drawn(folder, capsys):
    drawn = printed(capsys, ONE + "answers_random.jsonl --out all.jsonl")
    rows = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    counts = []
    for image in ("0.jpg", "1.jpg"):
        saved_answers.lines(folder / "some.jsonl", *(row for row in rows if row["image"] == image))
        for seed in range(8):
            try:
                main(["score", *shlex.split(ONE + f"some.jsonl --num-images 1 --seed {seed} --json")])
            except SystemExit:
                assert "questions have no answer" in capsys.readouterr().err
            else:
                counts.append(json.loads(capsys.readouterr().out)["answers"])
    assert drawn["answers"] == 4
    assert counts == [2] * 8  # each seed draws one of the two images


def test_the_verdicts_are_saved_and_can_be_scored_again(folder, capsys):
    first = printed(capsys, ONE + "answers_random.jsonl --out verdicts.jsonl")
    rows = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reply"], row["correct"]) for row in rows][2:] == [
        ("random/2", "Yes, it is.", False),
        ("random/3", "Yes", True),
    ]
    assert printed(capsys, ONE + "verdicts.jsonl") == first


def test_a_person_gets_a_table_what_it_rests_on_and_a_last_line(capsys):
    main(["score", *shlex.split(BOTH + " --out verdicts.jsonl")])
    said = capsys.readouterr().out
    rows = [line.replace("│", " ").split() for line in said.splitlines() if line.startswith("│")]
    assert ["accuracy", "↑", "75.0", "%", "50.0", "%", "62.5", "%"] in rows
    assert "…" not in said
    assert "exact_match: yes or no alone, and right" in said
    assert "parser: official" in said
    last = said.splitlines()[-1]
    assert last == (
        "pope: 8 answers, 1 of them unparsed: mean/accuracy 62.5 %, mean/precision 58.3 %, mean/recall 75.0 %, "
        "mean/f1 65.0 %; the verdicts are in verdicts.jsonl"
    )


def test_chair_is_that_of_its_variant_which_is_named(capsys):
    scored = printed(capsys, CHAIR + "captions.json")
    assert scored["benchmark"] == "chair_plain"
    assert "plain" in scored["about"]["variant"]
    # a puppy is the dog, the cat of image 42 is not there; three mentions, and the cup is in no caption
    want = {"chair_i": 1 / 3, "chair_s": 1 / 2, "coverage": 2 / 3, "words": 7 / 2, "n": 2}
    assert {key: scored["metrics"][key] for key in want} == pytest.approx(want)


def test_amber_has_both_halves(capsys):
    scored = printed(capsys, AMBER + "amber_answers.json")
    want = {"generative/chair": 1 / 2, "generative/cover": 1 / 2, "generative/hal": 1, "discriminative/accuracy": 1 / 2}
    # the original adds a thousandth to what it divides by
    assert {key: scored["metrics"][key] for key in want} == pytest.approx(want, abs=1e-3)
    assert (scored["answers"], scored["about"]["similarity"]) == (3, "equal words")


def test_mme_is_read_from_the_evaluation_tools_files(capsys):
    metrics = printed(capsys, MME + "said")["metrics"]
    want = {"score": 100 * 3 / 4 + 100 * 1 / 2, "existence/accuracy": 3 / 4, "n": 4, "n_unparsed": 1}
    assert {key: metrics[key] for key in want} == want


def test_saved_judgements_make_mmhals_figures_with_types_if_the_questions_are_there(capsys):
    scored = printed(capsys, JUDGED + "official.json")
    want = {"score": 4.0, "hallucination_rate": 1 / 2, "n": 2, "n_unparsed": 0, "counting/score": 2, "attribute/n": 1}
    assert {key: scored["metrics"][key] for key in want} == want
    assert scored["about"] == {"judge": "gpt-4-0314", "judgements": "official.json"}
    alone = printed(capsys, "mmhal --judgements official.json")
    assert (alone["answers"], alone["about"]) == (2, scored["about"])
    assert alone["metrics"] == {key: value for key, value in scored["metrics"].items() if "/" not in key}


def test_the_judge_of_a_runs_samples_is_that_of_its_results(folder, capsys):
    folder.joinpath("samples", "policy").mkdir(parents=True)
    ours = [{"id": f"00{at}-{name}", "judged": True, "score": 4, "parsed": True, "judgement": ""}
            for at, name in enumerate(["3fa", "0b1"])]  # fmt: skip
    saved_answers.lines(folder / "samples" / "policy" / "mmhal.jsonl", *ours)
    results = Results("test", None, {}, [])
    write_results(folder / "results.json", results, [MMHal(file=Path("template.json"), images=None, judge=RuleJudge())])
    about = printed(capsys, JUDGED + "samples/policy/mmhal.jsonl")["about"]
    assert about == {**RuleJudge().about(), "judgements": "samples/policy/mmhal.jsonl"}


def test_a_served_judge_rates_saved_answers_and_its_judgements_can_be_scored_again(folder, capsys):
    ratings = {"It is 3fa.": 5, "It is 0b1.": 1}

    def judge(_: int, body: dict) -> servers.Answer:
        asked = body["messages"][-1]["content"]
        return servers.completion(f"Rating: {next(rating for said, rating in ratings.items() if said in asked)}")

    with servers.Loopback(judge) as server:
        command = f"{MMHAL} --judge-server {server.url} --served-model gpt-x --judge-cache kept --out judged.jsonl"
        first = printed(capsys, command)
        assert printed(capsys, command) == first
    assert len(server.requests) == 2  # the second time all judgements were there
    want = {"score": 3.0, "hallucination_rate": 1 / 2, "attribute/score": 5, "counting/score": 1}
    assert {key: first["metrics"][key] for key in want} == want
    assert (first["about"]["judge"], len(first["about"]["judge_prompt"])) == ("gpt-x", 12)
    again = printed(capsys, JUDGED + "judged.jsonl --out again.jsonl")
    assert again["metrics"] == first["metrics"]
    assert (folder / "again.jsonl").read_bytes() == (folder / "judged.jsonl").read_bytes()


def test_a_local_judge_rates_saved_answers(folder, capsys):
    writers.build_llm(folder / "llm")
    (folder / "prompt.txt").write_text("{contents} {question} {reference} {answer}")
    command = f"{MMHAL} --judge-model llm --judge-prompt prompt.txt --out judged.jsonl"
    main(["score", *shlex.split(command), "--json"])
    scored = json.loads(capsys.readouterr().out)
    rated = [json.loads(line)["score"] for line in (folder / "judged.jsonl").read_text().splitlines()]
    assert (scored["about"]["judge"], scored["metrics"]["score"]) == ("llm", sum(rated) / 2)


def write_run(folder: Path) -> Results:
    """Write the results and samples of a test whose policy gave answers_random.jsonl."""
    evaluation = POPE(files={"random": Path("coco_pope_random.json")}, images=None)
    questions, replies = evaluation.questions(), evaluation.replies_in({"random": Path("answers_random.jsonl")})
    verdicts = evaluation.verdicts(questions, replies)
    (folder / "samples" / "policy").mkdir(parents=True)
    saved_answers.lines(folder / "samples" / "policy" / "pope.jsonl", *sample_rows(questions, replies, verdicts))
    report = evaluation.report(evaluation.tally(questions, verdicts))
    results = Results("test", None, {f"pope/{key}": value for key, value in report.items()}, [])
    write_results(folder / "results.json", results, [evaluation])
    return results


def test_a_runs_own_figures_are_made_again(folder, capsys):
    after = write_run(folder).after
    again = printed(capsys, "run .")
    assert (again["after"], again["changed"]) == (after, [])
    saved = (folder / "results.json").read_text()
    (folder / "results.json").write_text(saved.replace('"pope/mean/f1": 0.', '"pope/mean/f1": 0.1'))
    main(["score", "run", "."])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f".: {len(after)} figures, 1 of them not as in results.json: samples/policy pope/mean/f1"


def test_without_a_judge_there_are_no_figures_and_it_says_so(capsys):
    line = mistake(capsys, MMHAL + " --out verdicts.jsonl")
    assert line.startswith(
        "filled.json: 2 answers, all UNJUDGED, so there are no figures: give a judge, --judge-server"
    )
    assert not Path("verdicts.jsonl").exists()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(0, "Yes"), (1, "No"), (2, "Yes")], "1 of 4 questions have no answer ('random/3')"),
        ([(i, "Yes") for i in range(5)], "1 answers belong to no question ('random/4')"),
        ([(0, "Yes"), (1, "No"), (2, "Yes"), (7, "No")], "1 answers belong to no question ('random/7')"),
        ([(0, "Yes"), (1, "No"), (2, "Yes"), (2, "No")], "line 4: a second answer to '2'"),
        ([(i, "Is there a cup dog?".replace("cup " if i % 2 else " dog", "")) for i in range(4)], "over again"),
        ([], "the file is empty"),
    ],
    ids=["missing", "surplus", "foreign", "repeated", "questions", "empty"],
)
def test_answers_that_are_not_one_to_each_question_are_an_error(rows, said, folder, capsys):
    saved_answers.lines(folder / "a.jsonl", *({"question_id": i, "text": text} for i, text in rows))
    line = mistake(capsys, ONE + "a.jsonl")
    assert line.startswith("a.jsonl") and said in line


@pytest.mark.parametrize(
    ("file", "old", "new", "command", "said"),
    [
        ("coco_pope_random.json", ', "label": "yes"', "", BOTH, "line 1: no 'label'; is coco_pope_random.json a quest"),
        ("coco_pope_random.json", '"label": "yes"', '"label": "Yes"', BOTH, "line 1: 'label' must be 'yes' or 'no'"),
        ("coco_pope_random.json", '"question_id": 3', '"question_id": 2', BOTH, "line 4: question_id 2 stands twice"),
        ("answers_random.jsonl", '"text"', '"text', BOTH, "line 1: malformed JSON"),
        ("answers_random.jsonl", '"text"', '"said"', BOTH, "line 1: no answer"),
        ("truth.jsonl", '"cat"', '"cow"', CHAIR + "captions.json", "line 2: object 'cow' is not in synonyms.txt"),
        ("captions.json", "73", "74", CHAIR + "captions.json", "1 of 2 captions are of no image in truth.jsonl: '74'"),
        ("amber_answers.json", '"id": 3', '"id": 2', AMBER + "amber_answers.json", "item 3: a second answer to '2'"),
        ("amber/annotations.json", '"id": 3', '"id": 4', AMBER + "amber_answers.json", "id 3 is not in"),
    ],
)
def test_a_spoilt_file_is_one_line_that_names_it(file, old, new, command, said, folder, capsys):
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    line = mistake(capsys, command)
    assert said in line
    assert Path(file).name in line


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("run .", "no results.json: give the folder of a fit"),
        ("", "synthalign score: the following arguments are required: BENCHMARK"),
        ("popes", "invalid choice: 'popes'"),
        ("pope --questions coco_pope_random.json", "required: --answers; synthalign score pope --help says more"),
        (ONE + "answers_adversarial.jsonl", "the questions are of random, the answers of adversarial; name the files"),
        (TWO + "answers_random.jsonl", "the questions are of random, adversarial, the answers of random;"),
        ("pope --questions nosuch.json --answers answers_random.jsonl", "no such file: nosuch.json"),
        ("pope --questions amber --answers answers_random.jsonl", "amber is a folder, not a file"),
        (ONE + "answers_random.jsonl --num-images 1", "about all images, and --num-images says 1 of them; leave it"),
        (TWO + "answers_random.jsonl random=a", "answers_random.jsonl and a are both of the split 'random'"),
        (ONE + "nowhere.jsonl", "no such file: nowhere.jsonl"),
        (ONE + "x" * 300, "no such file: xxx"),
        (ONE + "amber", "amber is a folder, not a file"),
        (ONE + "answers_random.jsonl --num-images 3", "num_images=3"),
        (ONE + "answers_random.jsonl --seed x", "argument --seed: invalid int value: 'x'"),
        ("pope --questions mean=coco_pope_random.json --answers mean=answers_random.jsonl", "split 'mean'"),
        (ONE + "coco_pope_random.json", "every answer is its question over again"),
        (CHAIR + "captions.json --words fancy", "argument --words: invalid choice: 'fancy'"),
        ("amber --data . --answers amber_answers.json", "no such file"),
        (MME + "mme", "existence.txt, line 1: expected 4 columns between tabs, found 3"),
        (MME.replace("--tasks existence", "") + "said", "mme: neither count.txt nor a folder count"),
        ("mmhal --questions template.json", "give --answers for a judge to rate, or --judgements"),
        (MMHAL + " --judgements official.json", "one of the two"),
        ("mmhal --answers filled.json", "--answers need --questions"),
        (JUDGED + "official.json --judge-model x", "have their judge already"),
        (JUDGED + "official.json --out x", "--out wants the answers beside their judgements"),
        ("mmhal --judgements official.json --out x", "--out and --num-images need --questions"),
        (MMHAL + " --judge-server http://127.0.0.1:9/v1", "--judge-server needs --served-model"),
        (MMHAL + " --judge-server http://127.0.0.1:9/v1 --judge-model x", "two judges"),
        (MMHAL + " --judge-cache kept", "--judge-cache is of a judge"),
        (MMHAL + " --judge-model ./nowhere", "nowhere"),
        ("mmhal --questions template.json --answers template.json", "every model_answer is empty"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(command, said, capsys):
    assert said in mistake(capsys, command)


@pytest.mark.parametrize("benchmark", ["", "pope", "mmhal", "chair", "amber", "mme"])
def test_help_says_what_answers_look_like(benchmark, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["score", *benchmark.split(), "--help"])
    assert stopped.value.code == 0
    assert "question_id" in capsys.readouterr().out


def test_help_and_a_mistyped_option_open_no_heavy_room():
    code = """
import sys
from synthalign.cli import main
for args in (["score", "pope", "--help"], ["score", "pope", "--jsn"]):
    try:
        main(args)
    except SystemExit:
        pass
print({"torch", "numpy", "rich"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_scoring_needs_neither_lightning_nor_transformers(folder):
    write_run(folder)
    commands = [
        BOTH,
        CHAIR + "captions.json",
        AMBER + "amber_answers.json",
        MME + "said",
        JUDGED + "official.json",
        "run .",
    ]
    script = f"""
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"lightning", "pytorch_lightning", "transformers", "torchmetrics", "datasets"}}:
            raise AssertionError(name)

sys.meta_path.insert(0, Blocked())
from synthalign.cli import main
for command in {commands}:
    main(["score", *command.split(), "--json"])
    main(["score", *command.split()])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"about": {') == len(commands)
