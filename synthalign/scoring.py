"""The door's ``score``: a benchmark's figures from answers that were saved before, with no model at hand."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from synthalign.commands import Parser

if TYPE_CHECKING:  # they bring torch with them, which neither help nor a mistyped option should wait for
    from synthalign.evals.mmhal import MMHal
    from synthalign.types import Eval, Judge, Question, Reply

T = TypeVar("T")

DESCRIPTION = """\
Figures of a benchmark from saved answers: exactly one to every question, or it is an error, with exit status 2 and no
figures. Answers are JSON lines or a JSON array with the question's id (question_id or id) and the answer (text, answer
or reply), our own samples (samples/epoch-001/NAME.jsonl), or the benchmark's official files as they are."""

OF_A_JUDGE = ("served_model", "api_key_env", "judge_prompt", "judge_cache")
"""Options that mean nothing without one."""


EXACT = "exact_match: yes or no alone, and right; n_inexact: all other replies, which the other figures read as well"
"""What two of POPE's figures mean, under its table."""


class Scored(NamedTuple):
    """Saved answers and what they came to; of judgements alone neither questions, replies nor verdicts are known."""

    evaluation: "Eval"
    about: dict[str, str]
    metrics: dict[str, float]
    questions: "Sequence[Question]" = ()
    replies: "Sequence[Reply]" = ()
    verdicts: Sequence[dict[str, Any]] = ()


def run(args: Sequence[str]) -> None:
    """Run ``synthalign score``.

    Raises:
        ValueError: An option, a file or a row is not as it should be; the message names it.
    """
    options = _parser().parse_args(args[1:])
    if options.benchmark == "run":
        _show_run(options)
        return
    scored = options.read(options)
    if options.out is not None:
        _write(options.out, scored)
    if options.json:
        sys.stdout.write(json.dumps(_facts(scored), indent=2, ensure_ascii=False) + "\n")
    else:
        _show(scored, "" if options.out is None else f"; the verdicts are in {options.out}")


def _parser() -> Parser:
    parser = Parser(prog="synthalign score", description=DESCRIPTION)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")

    pope = _benchmark(benchmarks, "pope", "yes/no questions about objects: accuracy, precision, recall, F1, yes-ratio")
    pope.add_argument(
        "--questions",
        nargs="+",
        required=True,
        metavar="[SPLIT=]FILE",
        help="question files with their labels; a file without a name for its split is of the one that its own name "
        "holds, random, popular or adversarial, or else of a split called as the file is",
    )
    pope.add_argument(
        "--answers",
        nargs="+",
        required=True,
        metavar="[SPLIT=]FILE",
        help="the answers to each split, named alike; or one file for all, such as a samples file of ours. Ids begin "
        "again in every split, so they alone cannot tell one split's answers from another's: rows that repeat their "
        "question or image are checked",
    )
    pope.set_defaults(read=_pope)

    mmhal = _benchmark(
        benchmarks, "mmhal", "open questions: a judge rates each answer, and without one there are no figures"
    )
    mmhal.add_argument("--questions", type=Path, metavar="FILE", help="response_template.json")
    mmhal.add_argument(
        "--answers", type=Path, metavar="FILE", help="the answers, for a judge to rate; the template filled in will do"
    )
    mmhal.add_argument(
        "--judgements",
        type=Path,
        metavar="FILE",
        help="ratings from before: a judged samples file of ours, or what the official script writes; without "
        "--questions there are no figures of the types",
    )
    mmhal.add_argument("--judge-server", metavar="URL", help="an OpenAI-compatible server judges: https://…/v1")
    mmhal.add_argument("--served-model", metavar="NAME", help="name of the judge on the server")
    mmhal.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable with the server's key")
    mmhal.add_argument("--judge-model", metavar="FOLDER_OR_ID", help="a local language model judges")
    mmhal.add_argument("--judge-prompt", type=Path, metavar="FILE", help="what the judge is asked (our own prompt)")
    mmhal.add_argument("--judge-cache", type=Path, metavar="FOLDER", help="keep judgements, and never ask twice")
    mmhal.set_defaults(read=_mmhal)

    chair = _benchmark(
        benchmarks, "chair", "captions: objects that are not there, and how much of what is there is named"
    )
    chair.add_argument("--truth", type=Path, required=True, metavar="FILE", help="rows of {image, objects}")
    chair.add_argument(
        "--synonyms", type=Path, required=True, metavar="FILE", help="one object a line, its synonyms after commas"
    )
    chair.add_argument(
        "--answers",
        type=Path,
        required=True,
        metavar="FILE",
        help="the captions: rows of the truth's id, which is the image's name unless the truth has ids of its own; or "
        "of image or image_id, which is the image's name, or COCO's number of it",
    )
    chair.add_argument(
        "--words",
        choices=["plain", "wordnet"],
        default="plain",
        help="how objects are found in captions: as listed words (plain), or by WordNet's lemmas, with nltk",
    )
    chair.set_defaults(read=_chair)

    amber = _benchmark(
        benchmarks, "amber", "descriptions, and yes/no questions about objects, attributes and relations"
    )
    amber.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="`data` of the benchmark's repository"
    )
    amber.add_argument("--query", default="all", help="what was asked: query/query_QUERY.json (all)")
    amber.add_argument("--answers", type=Path, required=True, metavar="FILE", help="rows of {id, response}")
    amber.add_argument(
        "--words",
        choices=["plain", "wordnet"],
        default="plain",
        help="how nouns are found in descriptions: by AMBER's own vocabulary (plain), or by tags and WordNet's lemmas, "
        "with nltk",
    )
    amber.set_defaults(read=_amber)

    mme = _benchmark(benchmarks, "mme", "pairs of yes/no questions: MME's existence, count, position and color")
    mme.add_argument(
        "--questions", type=Path, required=True, metavar="FOLDER", help="with a file, or a folder of images, per task"
    )
    mme.add_argument(
        "--answers",
        type=Path,
        required=True,
        metavar="PATH",
        help="the evaluation tool's folder of TASK.txt, or a file",
    )
    mme.add_argument("--tasks", nargs="+", metavar="TASK", help="which tasks (the four of hallucination)")
    mme.set_defaults(read=_mme)

    what = "a run of ours: the figures of all its evaluations over again, from the answers in its samples/"
    of_run = benchmarks.add_parser(
        "run",
        help=what,
        description=f"{what[0].upper()}{what[1:]}, with the settings in its results.json, and whether they come out as "
        "they stand there. Relative paths in it begin where you are.",
    )
    of_run.add_argument("run", type=Path, help="its folder, with results.json")
    of_run.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def _benchmark(benchmarks: Any, name: str, what: str) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse's own
    parser = benchmarks.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}. {DESCRIPTION}")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the verdict on every answer, as JSON lines")
    parser.add_argument("--num-images", type=int, metavar="N", help="the answers are about N of the images only")
    parser.add_argument("--seed", type=int, default=0, help="with which the N images were drawn (0)")
    return parser


def _pope(options: argparse.Namespace) -> Scored:
    from synthalign.evals.pope import POPE
    from synthalign.evals.splits import answers_of, files_of

    files = files_of(options.questions)
    evaluation = POPE(files=files, images=None, **_subset(options))
    return _scored(evaluation, _read(evaluation, lambda one: one.replies_in(answers_of(options.answers, files))))


def _mmhal(options: argparse.Namespace) -> Scored:
    from synthalign.evals.mmhal import MMHal

    judged, judging = options.judgements is not None, bool(options.judge_server or options.judge_model)
    if judged == (options.answers is not None):
        raise ValueError("give --answers for a judge to rate, or --judgements of a judge before, one of the two")
    if judged and judging:
        raise ValueError("--judgements have their judge already; --judge-server and --judge-model rate --answers")
    if not judging and (lost := [name for name in OF_A_JUDGE if getattr(options, name) is not None]):
        raise ValueError(f"--{lost[0].replace('_', '-')} is of a judge: give --judge-server or --judge-model, too")
    if judged and options.questions is None:
        return _totals(options)
    if options.questions is None:
        raise ValueError("--answers need --questions, the benchmark's response_template.json")
    judge = _judge(options) if judging else None
    evaluation = MMHal(file=options.questions, images=None, judge=judge, **_subset(options))
    if not judged:
        replies = _read(evaluation, lambda one: one.replies_in(options.answers))
        if judge is None:
            raise ValueError(
                f"{options.answers}: {len(replies)} answers, all UNJUDGED, so there are no figures: give a judge, "
                "--judge-server URL --served-model NAME or --judge-model FOLDER_OR_ID"
            )
        return _scored(evaluation, replies)

    from synthalign.evals.mmhal.judgements import judgements_in

    questions = evaluation.questions()
    judgements = _read(evaluation, lambda one: judgements_in(options.judgements, one.questions()))
    verdicts = evaluation.judged(questions, judgements)
    metrics = evaluation.report(evaluation.tally(questions, verdicts))
    replies = _judged_replies(evaluation, options.judgements) if options.out else []
    return Scored(evaluation, _about_judgements(options.judgements), metrics, questions, replies, verdicts)


def _judged_replies(evaluation: "MMHal", file: Path) -> "list[Reply]":
    try:
        return evaluation.replies_in(file)
    except ValueError as error:
        raise ValueError(f"--out wants the answers beside their judgements, as in our samples: {error}") from None


def _totals(options: argparse.Namespace) -> Scored:
    """Score judgements whose questions are not at hand."""
    from synthalign.evals.mmhal import MMHal
    from synthalign.evals.mmhal.judgements import judgements_in
    from synthalign.evals.mmhal.ratings import totals

    if options.out is not None or options.num_images is not None:
        raise ValueError("--out and --num-images need --questions beside --judgements")
    metrics = totals(judgements_in(options.judgements))
    return Scored(MMHal(file=Path(), images=None), _about_judgements(options.judgements), metrics)


def _about_judgements(file: Path) -> dict[str, str]:
    """Name the judge of saved judgements, as far as the file does, or the results of the run whose samples it is."""
    from synthalign.evals.rescoring import judge_of
    from synthalign.tables import json_rows

    models = {row["model"] for _, row in json_rows(file) if isinstance(row.get("model"), str)}
    return {"judge": ", ".join(sorted(models)) or "unknown"} | judge_of(file) | {"judgements": str(file)}


def _judge(options: argparse.Namespace) -> "Judge":
    judge: Judge
    if options.judge_server and options.judge_model:
        raise ValueError("two judges: give --judge-server or --judge-model, not both")
    if options.judge_server:
        from synthalign.clients import ServedLLM
        from synthalign.evals.judges.served import ServedJudge

        if options.served_model is None:
            raise ValueError("--judge-server needs --served-model, the name of the judge on it")
        server = ServedLLM(base_url=options.judge_server, model=options.served_model, api_key_env=options.api_key_env)
        judge = ServedJudge(server=server, prompt=options.judge_prompt)
    else:
        from synthalign.evals.judges.local import LocalJudge
        from synthalign.vlm import LLM

        judge = LocalJudge(llm=LLM(model=options.judge_model), prompt=options.judge_prompt)
    if options.judge_cache is None:
        return judge

    from synthalign.evals.judges.kept import KeptJudgements

    return KeptJudgements(inner=judge, folder=options.judge_cache)


def _chair(options: argparse.Namespace) -> Scored:
    from synthalign.evals.chair import CHAIR
    from synthalign.evals.chair.lemmas import WordNetWords

    words = WordNetWords() if options.words == "wordnet" else None
    evaluation = CHAIR(file=options.truth, images=None, synonyms=options.synonyms, words=words, **_subset(options))
    return _scored(evaluation, _read(evaluation, lambda one: one.replies_in(options.answers)))


def _amber(options: argparse.Namespace) -> Scored:
    from synthalign.evals.amber import AMBER
    from synthalign.evals.amber.lemmas import WordNetNouns

    nouns = WordNetNouns() if options.words == "wordnet" else None
    evaluation = AMBER(folder=options.data, images=None, query=options.query, nouns=nouns, **_subset(options))
    return _scored(evaluation, _read(evaluation, lambda one: one.replies_in(options.answers)))


def _mme(options: argparse.Namespace) -> Scored:
    from synthalign.evals.mme.benchmark import HALLUCINATION, MME

    tasks = tuple(options.tasks or HALLUCINATION)
    evaluation = MME(folder=options.questions, images=None, tasks=tasks, **_subset(options))
    return _scored(evaluation, _read(evaluation, lambda one: one.replies_in(options.answers)))


def _read(evaluation: Any, read: Callable[[Any], T]) -> T:  # noqa: ANN401 - any of ours, each with num_images
    """Read what was saved of an evaluation; if it is about all images where some were meant, say so."""
    evaluation.questions()  # whose own mistakes are not the answers'
    try:
        return read(evaluation)
    except ValueError as error:
        if evaluation.num_images is None:
            raise
        try:
            read(replace(evaluation, num_images=None))
        except ValueError:
            raise error from None
    raise ValueError(
        f"the answers are about all images, and --num-images says {evaluation.num_images} of them; leave it out"
    )


def _subset(options: argparse.Namespace) -> dict[str, Any]:
    return {"num_images": options.num_images, "seed": options.seed}


def _scored(evaluation: "Eval", replies: "Sequence[Reply]") -> Scored:
    questions = evaluation.questions()
    verdicts = evaluation.verdicts(questions, replies)
    metrics = evaluation.report(evaluation.tally(questions, verdicts))
    return Scored(evaluation, evaluation.about(), metrics, questions, replies, verdicts)


def _write(path: Path, scored: Scored) -> None:
    from synthalign.evals.samples import sample_rows
    from synthalign.store import write_atomically

    rows = sample_rows(scored.questions, scored.replies, scored.verdicts)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _facts(scored: Scored) -> dict[str, Any]:
    return {
        "benchmark": scored.evaluation.name,
        "answers": _count(scored),
        "about": scored.about,
        "metrics": scored.metrics,
    }


def _count(scored: Scored) -> int:
    return len(scored.verdicts) or round(scored.metrics["n"])


def _show(scored: Scored, end: str) -> None:
    """Print the tables, what the figures depend on, and as the last line what they come to."""
    from rich.console import Console

    from synthalign.evals.sheet import in_brief, sheet, width_of

    tables = sheet(scored.evaluation, scored.metrics)
    console = Console(file=sys.stdout)
    console.width = max(console.width, width_of(tables, console))  # a wrapped line is better than a figure cut off
    for table in tables:
        console.print(table)
    said = ["↑ higher is better   ↓ lower is better", *(f"{key}: {value}" for key, value in scored.about.items())]
    if "n_inexact" in scored.metrics:
        said.append(EXACT)
    unread = scored.metrics.get("n_unparsed")
    left = "" if unread is None else f", {unread:.0f} of them unparsed" if unread else ", all parsed"
    said.append(
        f"{scored.evaluation.name}: {_count(scored)} answers{left}: {in_brief(scored.evaluation, scored.metrics)}"
    )
    sys.stdout.write("\n".join(said) + f"{end}\n")


def _show_run(options: argparse.Namespace) -> None:
    from rich.console import Console

    from synthalign.evals.rescoring import rescored
    from synthalign.evals.results import comparison

    evals, results, figures, changed = rescored(options.run)
    if options.json:
        about = {evaluation.name: evaluation.about() for evaluation in evals}
        facts = {**results._asdict(), "about": about, "changed": changed}
        sys.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        return
    Console(file=sys.stdout).print(comparison(evals, results))
    some = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
    said = f"{len(changed)} of them not as in results.json: {some}" if changed else "all as in results.json"
    sys.stdout.write(f"{options.run}: {figures} figures, {said}\n")
