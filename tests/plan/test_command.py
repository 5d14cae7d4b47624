"""``synthalign plan``: what it says of a run is what the run then does, and it leaves nothing behind."""

import json

import pytest
import yaml
from PIL import Image

from synthalign.cli import main


@pytest.fixture
def config(tmp_path, tiny_llava, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(6):
        Image.new("RGB", (40, 30), (40 * number, 90, 10)).save(tmp_path / "images" / f"{number}.png")
        asked = {"from": "human", "value": "<image> What is in the picture?"}
        rows.append(
            {
                "id": str(number),
                "image": f"images/{number}.png",
                "conversations": [asked, {"from": "gpt", "value": "A picture in one colour, which fills all of it."}],
                "rejected_conversations": [asked, {"from": "gpt", "value": "There are seven dogs and a red cup here."}],
            }
        )
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    settings = {
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "accumulate_grad_batches": 2},
        "model": {
            "class_path": "DPOModule",
            "init_args": {
                "policy": str(tiny_llava),
                "lora": {"r": 4, "alpha": 8},
                "loss": {"class_path": "synthalign.dpo.losses.DPO", "init_args": {"beta": 0.1}},
            },
        },
        "data": {
            "class_path": "SyntheticPreferenceDataModule",
            "init_args": {"pairs": "pairs.json", "batch_size": 2},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


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
    assert plan["pairs"] == 6 and "pairs.json" in plan["pairs_said"]
    assert plan["steps_per_epoch"] == 2  # three batches of two pairs, two at a time
    assert plan["fits"] and plan["epoch_s"] is None
    main(["fit", "--config", "run.yaml", "--trainer.enable_progress_bar", "false"])
    rows = (config / "runs" / "fit" / "metrics.csv").read_text().splitlines()
    assert max(int(row.split(",")[rows[0].split(",").index("step")]) for row in rows[1:]) == plan["steps_per_epoch"] - 1


def test_pairs_that_are_not_made_yet_are_assumed_and_said_to_be(config, capsys):
    plan = planned(capsys, "--num-pairs", "1000", "--tokens", "30", "20", "10", "--tflops", "1")
    assert "1000 pairs (as asked; none are made yet)" in plan["pairs_said"]
    assert plan["steps_per_epoch"] == 250
    assert plan["epoch_s"] == pytest.approx(plan["operations_per_epoch"] / 1e12)
    (config / "pairs.json").unlink()
    assert "10000 pairs (assumed" in planned(capsys)["pairs_said"]


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
        (["--trainer.strategy", "deepspeed"], "trainer.strategy deepspeed cannot be planned"),
        (["--model.init_args.lora", "null"], "does not stay its own reference"),
        (["--model.init_args.rank", "3"], "run.yaml"),
    ],
)
def test_a_mistake_is_one_line(config, capsys, flags, said):
    with pytest.raises(SystemExit) as left:
        main(["plan", "--config", "run.yaml", "--calibrate", "0", *flags])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("synthalign: error")]
    assert left.value.code == 2 and len(errors) == 1
    if "rank" not in flags[0]:
        assert said in errors[0]
