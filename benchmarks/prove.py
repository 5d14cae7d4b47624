"""Prove that ranked synthetic pairs lower hallucination in the offline world, over seeds and beside a control.

    python benchmarks/prove.py [--seeds 0 1 2 3 4] [--out runs/prove]

For every seed: new prompts, new pairs, one training on them, and one training on the control: the same pairs, exactly
half of them flipped within each (question type, chosen answer). All are evaluated on the held-out scenes, on which
nothing was tuned, and the table goes into benchmarks/README.md. Everything runs through the command line, as a user
would; what is finished is not done again.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from synthalign.datamodules import SyntheticPreferenceDataModule
from synthalign.store import digest
from synthalign.vlm import Chat
from synthalign.world.questions import DESCRIBE

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- prove: begin -->", "<!-- prove: end -->"

METRICS = {  # row of the table: (key in results.json, shown as a percentage)
    "CHAIRi": ("chair_plain/chair_i", True),
    "CHAIRs": ("chair_plain/chair_s", True),
    "coverage": ("chair_plain/coverage", True),
    "words per caption": ("chair_plain/words", False),
    "MMHal-style score": ("mmhal/score", False),
    "MMHal-style hallucination rate": ("mmhal/hallucination_rate", True),
    "POPE random accuracy": ("pope/random/accuracy", True),
    "POPE popular accuracy": ("pope/popular/accuracy", True),
    "POPE adversarial accuracy": ("pope/adversarial/accuracy", True),
    "POPE adversarial precision": ("pope/adversarial/precision", True),
    "POPE adversarial recall": ("pope/adversarial/recall", True),
    "POPE adversarial F1": ("pope/adversarial/f1", True),
    "POPE adversarial yes-ratio": ("pope/adversarial/yes_ratio", True),
    "POPE adversarial AUC of p(yes)": ("pope/adversarial/auc", False),
}


def synthalign(*args: str, made: Path | None = None) -> None:
    """Run a command of ours to its end, unless it has run to its end before with the same arguments and configs.

    Args:
        args: The command line.
        made: Folder that the command makes. What an unfinished run left in it is removed first.
    """
    configs = [Path(arg).read_text(encoding="utf-8") for arg in args if arg.endswith(".yaml")]
    done = None if made is None else made / "done"
    if done is not None and done.is_file() and done.read_text() == digest([args, configs]):
        return
    if made is not None:
        shutil.rmtree(made, ignore_errors=True)
    print("$ synthalign", *args, flush=True)
    subprocess.run([sys.executable, "-m", "synthalign", *args], check=True, cwd=ROOT)
    if done is not None:
        done.write_text(digest([args, configs]))


def prove_seed(seed: int, out: Path) -> None:
    """Make pairs, train on them and on the control, and evaluate both."""
    run = out / f"seed-{seed}"
    overlay = run / "overlay.yaml"
    run.mkdir(parents=True, exist_ok=True)
    demo = (ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8")
    heldout = (ROOT / "configs" / "demo_heldout.yaml").read_text(encoding="utf-8")
    for name, text in (("demo.yaml", demo), ("heldout.yaml", heldout)):
        (run / name).write_text(text.replace("runs/demo", str(run)), encoding="utf-8")
    train_only = [{"class_path": "SaveAdapter"}]
    overlay.write_text(yaml.safe_dump({"seed_everything": seed, "trainer": {"callbacks": train_only}}))
    config = ["--config", str(run / "demo.yaml"), "--config", str(overlay)]

    synthalign("world", str(run / "world"), "--seed", str(seed), made=run / "world")
    synthalign("fit", *config, "--trainer.default_root_dir", str(run / "ranked"), made=run / "ranked" / "fit")
    control = run / "control.parquet"
    write_control(run, control, seed)
    data = ["--data.init_args.synthesis", "null", "--data.init_args.pairs", str(control)]
    data += ["--data.init_args.balance_yes_no", "false", "--data.init_args.response_gates", "[]"]
    where = ["--trainer.default_root_dir", str(run / "control")]
    synthalign("fit", *config, *data, *where, made=run / "control" / "fit")
    for arm in ("ranked", "control"):
        evaluate = yaml.safe_load((run / "heldout.yaml").read_text())
        evaluate["trainer"]["callbacks"][0]["init_args"]["baseline"] = arm == "ranked"  # the base is one and the same
        (run / f"{arm}.yaml").write_text(yaml.safe_dump(evaluate))
        test = ["--config", str(run / "demo.yaml"), "--config", str(run / f"{arm}.yaml")]
        test += ["--trainer.default_root_dir", str(run / arm)]
        adapter = ["--model.init_args.adapter", str(run / arm / "fit" / "adapter")]
        synthalign("test", *test, *adapter, made=run / arm / "test")


def write_control(run: Path, control: Path, seed: int) -> None:
    """Write the pairs that the ranked run trained on, half of them flipped."""
    (made,) = (run / "pairs").glob("pair-*/*.table")
    shards = [made.parent / name for name in json.loads(made.read_text())]
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    chat = Chat(model=str(ROOT / "synthalign" / "world" / "weights" / "vlm"))
    data = SyntheticPreferenceDataModule(
        pairs=str(made), balance_yes_no=True, seed=seed, response_gates=[], pair_gates=[], chat=chat
    )
    data.setup("fit")
    assert data.train_set is not None
    trained = {data.train_set[position].id for position in range(len(data.train_set))}
    kept = half_flipped([row for row in rows if row["id"] in trained], seed)
    for row in kept:  # unscored, as a coin's choice is: no gate looks at the margin
        row["chosen_score"] = row["rejected_score"] = None
    pq.write_table(pa.Table.from_pylist(kept, schema=pq.read_schema(shards[0])), control)


def half_flipped(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Swap chosen and rejected in exactly half of the pairs of each group, and return them in the order of their ids.

    A group is a (question type, first word of the chosen answer). Every second odd group flips one pair more than it
    keeps, the others one less.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[question_type(row["question"]), row["chosen"].split()[0].strip(",.")].append(row)
    rng, odd, mixed = Random(f"control {seed}"), 0, []
    for _, group in sorted(groups.items()):
        rng.shuffle(group)
        half = (len(group) + odd % 2) // 2
        odd += len(group) % 2
        mixed += [swapped(row) for row in group[:half]] + group[half:]
    return sorted(mixed, key=lambda row: row["id"])


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the pairs table with its two sides exchanged."""
    ends = ("", "_score", "_responder")
    exchanged = {f"chosen{end}": row[f"rejected{end}"] for end in ends}
    return row | exchanged | {f"rejected{end}": row[f"chosen{end}"] for end in ends}


def question_type(question: str) -> str:
    """Tell descriptions, yes/no questions and the other forms apart by their first two words."""
    if question in DESCRIBE:
        return "describe"
    return " ".join(question.split()[:2])


def table(out: Path, seeds: list[int]) -> str:
    """Return the table: base, then mean and standard deviation over the seeds, then the changes."""
    arms = {
        arm: [json.loads((out / f"seed-{seed}" / arm / "test" / "results.json").read_text()) for seed in seeds]
        for arm in ("ranked", "control")
    }
    lines = ["| | base | ranked pairs | control: half flipped |", "|---|---|---|---|"]
    for name, (key, percent) in METRICS.items():
        base = arms["ranked"][0]["before"][key]
        cells = [shown(base, percent)]
        for arm in ("ranked", "control"):
            values = [result["after"][key] for result in arms[arm]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{shown(statistics.mean(values), percent)} ± {shown(spread, percent)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")

    def mean(arm: str, key: str) -> float:
        return statistics.mean(result["after"][key] for result in arms[arm])

    base = arms["ranked"][0]["before"]
    claims = [
        ("base: coverage at least .90", base["chair_plain/coverage"], base["chair_plain/coverage"] >= 0.90),
        ("base: CHAIRi at least .08", base["chair_plain/chair_i"], base["chair_plain/chair_i"] >= 0.08),
        (
            "base: POPE random accuracy at least 75 %",
            base["pope/random/accuracy"],
            base["pope/random/accuracy"] >= 0.75,
        ),
    ]
    fall = 1 - mean("ranked", "chair_plain/chair_i") / base["chair_plain/chair_i"]
    kept = mean("ranked", "chair_plain/coverage") / base["chair_plain/coverage"]
    length = mean("ranked", "chair_plain/words") / base["chair_plain/words"] - 1
    mmhal = mean("ranked", "mmhal/score") - base["mmhal/score"]
    pope = mean("ranked", "pope/adversarial/accuracy") - base["pope/adversarial/accuracy"]
    recall = mean("ranked", "pope/adversarial/recall") / base["pope/adversarial/recall"]
    control = 1 - mean("control", "chair_plain/chair_i") / base["chair_plain/chair_i"]
    claims += [
        ("CHAIRi down by at least 60 %", fall, fall >= 0.60),
        ("coverage at least 95 % of the base's", kept, kept >= 0.95),
        ("caption length within 20 %", length, abs(length) <= 0.20),
        ("MMHal-style score up", mmhal, mmhal > 0),
        ("POPE adversarial accuracy up by at least 10 points", pope, pope >= 0.10),
        ("POPE adversarial recall at least 95 % of the base's", recall, recall >= 0.95),
        ("control: CHAIRi down by less than 15 %", control, control < 0.15),
    ]
    lines += ["", "| claim | measured | holds |", "|---|---|---|"]
    lines += [f"| {claim} | {value:.3f} | {'yes' if holds else 'NO'} |" for claim, value, holds in claims]
    lines += [
        "",
        "| seed | CHAIRi ranked | CHAIRi control | POPE adv ranked | POPE adv control | AUC ranked | AUC control |",
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for position, seed in enumerate(seeds):
        cells = [str(seed)]
        for key, percent in (METRICS[name] for name in ("CHAIRi", "POPE adversarial accuracy", METRIC_AUC)):
            cells += [shown(arms[arm][position]["after"][key], percent) for arm in ("ranked", "control")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


METRIC_AUC = "POPE adversarial AUC of p(yes)"


def shown(value: float, percent: bool) -> str:
    """Write a number the way its metric reads best."""
    return f"{100 * value:.1f} %" if percent else f"{value:.3f}"


def main() -> None:
    """Run the proof and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of prompts, pairs and training")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "prove", help="folder of the runs")
    options = parser.parse_args()
    out = options.out.resolve()
    for seed in options.seeds:
        prove_seed(seed, out)
    result = table(out, options.seeds)
    print(result)
    page = ROOT / "benchmarks" / "README.md"
    text = page.read_text(encoding="utf-8")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n{result}\n{END}{tail}", encoding="utf-8")
    print(f"The table is in {page.relative_to(ROOT)}; the runs are in {options.out}/")


if __name__ == "__main__":
    main()
