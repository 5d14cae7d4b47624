"""``synthalign plan``: what it says of a run is what the run then does, and it leaves nothing behind."""

import json

import pytest
import torch

from synthalign.cli import main


def planned(capsys, *flags):
    main(["plan", "--config", "run.yaml", "--json", "--calibrate", "0", *flags])
    return json.loads(capsys.readouterr().out)


def test_a_plan_says_what_the_run_then_has(config, capsys):
    before = sorted(config.rglob("*"))
    plan = planned(capsys)
    assert sorted(config.rglob("*")) == before
    # adapters of rank 4 on seven linears of 32 x 32 (four), 32 x 64 (three), in two layers
    assert plan["trained"] == 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64))
    assert plan["weights"]["trained"] == 4 * plan["trained"]
    assert plan["memory"]["optimizer"] == 8 * plan["trained"]
    assert plan["pairs"] == 6 and "pairs.json" in plan["pairs_from"]
    assert plan["steps_per_epoch"] == 2  # three batches of two pairs, two at a time
    assert plan["fits"] and plan["epoch_s"] is None
    main(["fit", "--config", "run.yaml", "--trainer.enable_progress_bar", "false"])
    rows = (config / "runs" / "fit" / "metrics.csv").read_text().splitlines()
    assert max(int(row.split(",")[rows[0].split(",").index("step")]) for row in rows[1:]) == plan["steps_per_epoch"] - 1


def test_pairs_that_are_not_made_yet_are_assumed_and_said_to_be(config, capsys):
    plan = planned(capsys, "--num-pairs", "1000", "--tokens", "30", "20", "10", "--tflops", "1")
    assert plan["pairs"] == 1000 and plan["pairs_from"].startswith("as asked: prompts of")
    assert plan["steps_per_epoch"] == 250
    assert plan["epoch_s"] == pytest.approx(plan["operations_per_epoch"] / 1e12)
    (config / "pairs.json").unlink()
    plan = planned(capsys)
    assert plan["pairs"] == 10_000 and plan["pairs_from"].startswith("assumed")


def test_what_does_not_fit_is_said_with_what_would_change_it(config, capsys):
    main(["plan", "--config", "run.yaml", "--calibrate", "0", "--memory-gib", "0.0001", "--reserve-gib", "0"])
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("does not fit: ")
    for way in ("gradient_checkpointing", "batch_size: 1", "nf4", "model_parallel on"):
        assert way in said


def test_strategy_and_devices_decide_on_shares_and_traffic(config, capsys):
    flags = ("--trainer.devices", "4", "--num-pairs", "100")
    ddp = planned(capsys, *flags, "--trainer.strategy", "ddp")
    sharded = planned(capsys, *flags, "--trainer.strategy", "model_parallel")
    assert (ddp["spread"], sharded["spread"]) == ("ddp", "sharded")
    assert ddp["traffic_per_step"]["reduced"] == 2 * 3 / 4 * ddp["weights"]["trained"]
    assert sharded["memory"]["language"] == ddp["memory"]["language"] // 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.init_args.policy", "nobody/nothing"], "the hub cannot be reached, and it is not among the models"),
        (["--tokens", "0", "1", "1"], "--tokens takes question, chosen and rejected"),
        (["--num-pairs", "9", "--tokens", "30", "500", "1"], "are more than 512: fit would drop such pairs"),
        (["--trainer.strategy", "deepspeed"], "trainer.strategy deepspeed cannot be planned"),
        (["--model.init_args.lora", "null"], "does not stay its own reference"),
        (["--model.init_args.rank", "3"], "--model.init_args.rank: "),
        (["--tflops", "0"], "--tflops must be from 1e-06"),
        (["--num-pairs", "0"], "--num-pairs must be from 1"),
        (["--image-size", "-5"], "--image-size must be from 1"),
        (["--memory-gib", "-1"], "--memory-gib must be from 1e-06"),
        (["--memory-gib", "1.5"], "--reserve-gib 2 is all of --memory-gib 1.5: keep less free"),
        (["--trainer.devices", "0"], "are no devices"),
        (["--trainer.devices", "4"], "6 pairs are too few for 4 processes with a batch_size of 2"),
        (
            ["--model.init_args.lora.target_modules=.*q_proj", "--trainer.strategy=model_parallel"],
            "leaves the encoder whole, but vision_tower",
        ),
        (
            ["--num-pairs", "9", "--model.init_args.chat_template", "{{ raise_exception('no') }}"],
            "refuses turns of user",
        ),
        (["--num-pairs", "9", "--model.init_args.chat_template", "no image"], "refuses a prompt with an image"),
    ],
)
def test_a_mistake_is_one_line(config, capsys, flags, said):
    with pytest.raises(SystemExit) as left:
        main(["plan", "--config", "run.yaml", "--calibrate", "0", *flags])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("synthalign: error")]
    assert left.value.code == 2 and len(errors) == 1
    assert said in errors[0]


def test_an_image_that_pairs_share_counts_once_in_all_figures(config, capsys):
    rows = json.loads((config / "pairs.json").read_text())
    (config / "pairs.json").write_text(json.dumps([{**row, "image": "images/0.png"} for row in rows]))
    layout = ("--model.init_args.layout", "synthalign.dpo.layouts.Trie", "--data.init_args.batch_size", "6")
    plan = planned(capsys, *layout)
    # one batch is the epoch
    assert plan["operations_per_epoch"] == sum(plan["operations_of_typical_batch"].values())
    assert plan["tokens_per_epoch"] == plan["largest_batch_tokens"]


def test_a_layout_that_does_not_know_the_model_is_planned_and_tried_as_rows(config, capsys):
    rows, other = (
        planned(capsys, "--calibrate", "1", "--model.init_args.layout", layout)
        for layout in ("synthalign.dpo.layouts.Rows", "plan.never.Never")
    )
    assert (rows["layout_carried"], other["layout_carried"]) == (True, False)
    assert rows["memory"] == other["memory"] and other["epoch_s"] > 0


def test_without_a_gpu_a_run_for_one_has_no_verdict(config, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpus = ("--trainer.accelerator", "gpu", "--trainer.devices", "64", "--num-pairs", "1000", "--calibrate", "1")
    plan = planned(capsys, *gpus)
    assert (plan["available"], plan["fits"], plan["epoch_s"], plan["ways"]) == (None, None, None, [])
    main(["plan", "--config", "run.yaml", *gpus])
    out = capsys.readouterr().out
    assert "fit:" not in out and out.splitlines()[-1].startswith("no GPU is here: say what the run will have")


def test_what_would_change_it_is_what_the_run_would_heed(config, capsys):
    few = ("--memory-gib", "0.0001", "--reserve-gib", "0", "--data.init_args.max_tokens", "500")
    model = {
        "optimizer": "bitsandbytes.optim.AdamW8bit",  # which cannot be spread
        "reference": "synthalign.dpo.reference.FrozenCopy",  # which is not quantised
        "gradient_checkpointing": "true",
    }
    plan = planned(capsys, *few, *(f"--model.init_args.{key}={value}" for key, value in model.items()))
    longest = plan["tokens_per_epoch"] // 6  # all six are alike
    assert [way["name"] for way in plan["ways"]] == [f"data.init_args.max_tokens: {longest}"]
