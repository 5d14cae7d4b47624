"""What a run left is read from its files, whole or not."""

import pytest
from report_runs import RunFolder, yes_no

from synthalign.pages.report_run import POINTS, read_run


def two_epochs(root):
    run = RunFolder(root)
    run.sit(0, {"pope": [yes_no(1, "Yes")]}, {"pope/accuracy": 0.0})
    run.sit(1, {"pope": [yes_no(1, "No")]}, {"pope/accuracy": 1.0})
    return run


def test_a_fit_is_its_history(tmp_path):
    folder, run = read_run(two_epochs(tmp_path / "a" / "fit").finish())
    assert (run.title, run.stage) == ("a/fit", "fit")
    assert [(one.label, one.epoch, one.step) for one in run.sittings] == [("before training", 0, 0), ("epoch 1", 1, 10)]
    assert run.sittings[1].samples == folder / "samples" / "epoch-001"
    assert run.sittings[1].metrics == {"pope/accuracy": 1.0}


def test_results_json_itself_names_the_run(tmp_path):
    root = two_epochs(tmp_path / "fit").finish()
    assert read_run(root / "results.json") == read_run(root)


def stepwise(root):
    run = RunFolder(root)
    for step, label in ((0, "epoch-000"), (5, "step-000005"), (10, "epoch-001"), (15, "step-000015")):
        run.sit(step // 10, {"pope": []}, {"pope/accuracy": step / 20}, step, label)
        run.save(label, "pope", [yes_no(1, "No")])
    return run


def test_evaluations_inside_an_epoch_are_named_by_their_step(tmp_path):
    run = stepwise(tmp_path / "fit")
    labels = ["before training", "step 5", "epoch 1", "step 15"]
    assert [one.label for one in read_run(run.finish())[1].sittings] == labels
    (run.root / "results.json").unlink()
    lines = [f"{one['epoch']},{one['step']},{one['metrics']['pope/accuracy']}" for one in run.history]
    (run.root / "metrics.csv").write_text("\n".join(["epoch,step,pope/accuracy", *lines]) + "\n")
    found = read_run(run.root)[1].sittings
    assert [one.label for one in found] == labels
    assert [one.metrics["pope/accuracy"] for one in found] == [0.0, 0.25, 0.5, 0.75]


def test_a_test_sets_the_base_against_the_aligned_model(tmp_path):
    run = RunFolder(tmp_path / "test")
    run.sit(0, {"pope": []}, {"pope/accuracy": 0.5}, label="base")
    run.sit(1, {"pope": []}, {"pope/accuracy": 0.75}, label="policy")
    _, found = read_run(run.finish("test"))
    assert [(one.label, one.samples.name, one.step) for one in found.sittings] == [
        ("base model", "base", None),
        ("aligned model", "policy", None),
    ]


def test_a_validate_shows_the_policy_alone(tmp_path):
    run = RunFolder(tmp_path / "validate")
    run.sit(0, {"pope": []}, {"pope/accuracy": 0.5}, label="policy")
    assert [one.label for one in read_run(run.finish("validate"))[1].sittings] == ["policy"]


def test_a_killed_run_shows_what_it_saved(tmp_path):
    root = two_epochs(tmp_path / "fit").root
    (root / "metrics.csv").write_text(
        "epoch,pope/accuracy,step,train/loss\n0,0.0,0,\n0,,3,0.7\n1,1.0,10,\n1,,11,0.6\n1,0.9\n"
    )
    _, run = read_run(root)
    assert run.stage == "unfinished" and "no results.json" in run.notes[0]
    assert [(one.label, one.step, one.metrics) for one in run.sittings] == [
        ("before training", 0, {"pope/accuracy": 0.0}),
        ("epoch 1", 10, {"pope/accuracy": 1.0}),
    ]
    assert run.evals == {"pope": {}}
    assert run.training == {"train/loss": [[3, 0.7], [11, 0.6]]}


def test_the_evaluation_in_which_a_run_was_killed_is_left_out(tmp_path):
    run = RunFolder(tmp_path / "fit")
    for epoch in (0, 1):
        run.sit(epoch, {"chair": [], "pope": []}, {})
    run.save("epoch-002", "chair", [])
    run.save("epoch-002", ".pope.rank-00000", [])
    _, found = read_run(run.root)
    assert [one.label for one in found.sittings] == ["before training", "epoch 1"]
    assert list(found.evals) == ["chair", "pope"]


def test_a_killed_run_without_figures_shows_its_replies(tmp_path):
    _, run = read_run(two_epochs(tmp_path / "fit").root)
    assert [(one.label, one.metrics) for one in run.sittings] == [("before training", {}), ("epoch 1", {})]


def test_a_killed_run_is_read_from_what_it_wrote_of_itself(tmp_path):
    run = two_epochs(tmp_path / "fit")
    legend = {"accuracy": {"better": "high", "percent": True, "headline": True}}
    run.evals["pope"] = {"legend": legend}
    finished = read_run(run.finish(policy="llava"))[1]
    (run.root / "results.json").rename(run.root / "unfinished.json")
    run.save("epoch-002", "pope", [yes_no(1, "No")])  # the end came before its figures
    unfinished = read_run(run.root)[1]
    assert "no results.json" in unfinished.notes[0] and "not known" not in unfinished.notes[0]
    assert unfinished._replace(notes=[]) == finished
    assert unfinished.evals["pope"]["legend"] == legend


def test_a_training_curve_is_averaged_to_a_length_that_a_page_shows(tmp_path):
    root = two_epochs(tmp_path / "fit").finish()
    lines = [f"{step},{step % 2}" for step in range(4 * POINTS)]
    (root / "metrics.csv").write_text("\n".join(["step,train/loss", *lines, "9999,nan"]) + "\n")
    curve = read_run(root)[1].training["train/loss"]
    assert len(curve) <= POINTS
    assert curve[0] == [4, 2 / 5]  # five steps: 0 1 0 1 0


def test_the_settings_in_brief_are_those_of_the_config(tmp_path):
    root = two_epochs(tmp_path / "fit").finish(policy="llava-hf/llava-1.5-7b-hf")
    (root / "config.yaml").write_text(
        "seed_everything: 3\ntrainer: {max_epochs: 2}\nmodel:\n  init_args:\n    policy: other\n"
        "    loss: {class_path: synthalign.dpo.losses.DPO, init_args: {beta: 0.1, more: null}}\n"
        "    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-06}}\n"
    )
    settings = read_run(root)[1].settings
    assert settings == {
        "Policy": "llava-hf/llava-1.5-7b-hf",
        "Loss": "DPO(beta=0.1)",
        "Optimizer": "AdamW, lr 1e-06",
        "Epochs": "2",
        "Seed": "3",
    }


@pytest.mark.parametrize("config", ["[", "- 1", "model: {init_args: {loss: 3, lora: true, optimizer: null}}", ""])
def test_an_odd_config_costs_no_page(tmp_path, config):
    root = two_epochs(tmp_path / "fit").finish()
    (root / "config.yaml").write_text(config)
    assert read_run(root)[1].settings == {}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"stage": "fit"}', '{"stage":"fit","before":null,"after":3,"history":[],"evals":{}}'],
)
def test_a_damaged_results_file_is_named(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json is not what a run writes"):
        read_run(tmp_path)


def test_a_folder_of_runs_leads_to_them(tmp_path):
    two_epochs(tmp_path / "fit").finish()
    with pytest.raises(ValueError, match=r"neither results\.json nor samples: did you mean .*fit\?"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match=r"there is no .*nothing"):
        read_run(tmp_path / "nothing")
