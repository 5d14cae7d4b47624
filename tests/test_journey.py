"""Saved folders of real model classes go from prompts to the final table, by the command line and a config alone."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import drawings
import pytest
import yaml

from synthalign.cli import main

CONFIG = """
trainer:
  default_root_dir: run
  accelerator: cpu
  max_epochs: 2
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: Evaluate
      init_args:
        evals:
          - class_path: synthalign.evals.pope.POPE
            init_args:
              files: {random: pope/random.json, popular: pope/popular.json, adversarial: pope/adversarial.json}
              images: images
              max_new_tokens: 3
          - class_path: synthalign.evals.mmhal.MMHal
            init_args:
              file: mmhal.json
              images: images
              max_new_tokens: 5
              judge: {class_path: synthalign.world.judge.RuleJudge}
    - class_path: SaveAdapter
    - class_path: ModelCheckpoint
      init_args: {monitor: pope/adversarial/accuracy, mode: max, save_on_train_epoch_end: true, filename: best}
model:
  class_path: DPOModule
  init_args:
    policy: LLAVA_FOLDER
    lora: {r: 2, alpha: 4}
    loss: {class_path: synthalign.dpo.losses.DPO}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
data:
  class_path: SyntheticPreferenceDataModule
  init_args:
    batch_size: 2
    synthesis:
      prompts: prompts.jsonl
      store: store
      num_images: 2
      num_samples: 2
      shard_size: 3
      generator:
        class_path: synthalign.diffusion.DiffusionGenerator
        init_args: {model: DIFFUSION_FOLDER, num_inference_steps: 2}
      image_reward: {class_path: synthalign.rewards.clip.CLIPReward, init_args: {model: CLIP_FOLDER}}
      responders:
        - {class_path: synthalign.vlm.VLM, init_args: {model: LLAVA_FOLDER, max_new_tokens: 8}}
        - {class_path: synthalign.vlm.VLM, init_args: {model: LLAVA_FOLDER, max_new_tokens: 6, temperature: 1.5}}
      response_reward:
        class_path: synthalign.rewards.sequence_classification.SequenceClassificationReward
        init_args: {model: REWARD_FOLDER}
      response_gates: [{class_path: synthalign.pairs.Empty}]
"""

Journey = Callable[[Path, dict], Path]


@pytest.fixture
def journey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llava: Path, tiny_clip: Path, tiny_reward: Path
) -> Journey:
    """Write the benchmarks and a config for a diffusion folder, and step into their folder."""

    def write(diffusion: Path, settings: dict) -> Path:
        drawings.write_benchmarks(tmp_path / "files")
        monkeypatch.chdir(tmp_path / "files")
        text = CONFIG
        for name, folder in (
            ("LLAVA_FOLDER", tiny_llava),
            ("DIFFUSION_FOLDER", diffusion),
            ("CLIP_FOLDER", tiny_clip),
            ("REWARD_FOLDER", tiny_reward),
        ):
            text = text.replace(name, str(folder))
        config = yaml.safe_load(text)
        config["data"]["init_args"]["synthesis"]["generator"]["init_args"].update(settings)
        Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return Path("config.yaml")

    return write


def metrics(path: Path) -> dict[int, dict[str, str]]:
    """The rows of a CSV log that hold evaluations, by epoch."""
    with path.open() as file:
        return {int(row["epoch"]): row for row in csv.DictReader(file) if row.get("pope/random/accuracy")}


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_saved_folders_go_from_prompts_to_the_final_table_by_config_alone(
    family: str, journey: Journey, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
):
    settings = {"without": ["text_encoder_3", "tokenizer_3"]} if family == "sd3" else {}
    config = str(journey(request.getfixturevalue(f"tiny_{family}"), settings))

    main(["synthesize", "--config", config])
    said = capsys.readouterr().out
    assert "8 pairs; dropped 0" in said
    shards = sorted(Path("store").rglob("*.parquet"))
    stamps = [shard.stat().st_mtime_ns for shard in shards]
    assert {shard.parent.name.partition("-")[0] for shard in shards} == {
        "draw",
        "rank",
        "pick",
        "answer",
        "score",
        "pair",
    }

    main(["fit", "--config", config])
    assert [shard.stat().st_mtime_ns for shard in sorted(Path("store").rglob("*.parquet"))] == stamps
    said = capsys.readouterr().out
    assert "before" in said and "after" in said and "change" in said
    assert "Everything is in run/fit" in said.replace("\n", "")
    results = json.loads(Path("run/fit/results.json").read_text())
    assert [entry["epoch"] for entry in results["history"]] == [0, 1, 2]

    logged = metrics(Path("run/fit/metrics.csv"))
    assert sorted(logged) == [0, 1, 2]
    for epoch, entry in zip(sorted(logged), results["history"], strict=True):
        for key in ("pope/random/accuracy", "pope/adversarial/auc", "mmhal/score", "mmhal/hallucination_rate"):
            assert float(logged[epoch][key]) == pytest.approx(entry["metrics"][key])
    assert list(Path("run/fit").glob("events.out.tfevents.*"))
    assert list(Path("run/fit").rglob("best.ckpt"))
    samples = Path("run/fit/samples/epoch-002/pope.jsonl").read_text().splitlines()
    assert len(samples) == 24 and json.loads(samples[0])["reply"] is not None

    if family == "sd":
        main(["test", "--config", config])  # the bare base: a fresh adapter changes nothing
        bare = json.loads(Path("run/test/results.json").read_text())
        assert bare["before"] is None
        assert bare["after"] == results["history"][0]["metrics"]
        main(["test", "--config", config, "--model.init_args.adapter", "run/fit/adapter"])
        aligned = json.loads(Path("run/test-2/results.json").read_text())
        assert aligned["before"] == bare["after"] and aligned["after"] == results["history"][-1]["metrics"]


def test_test_makes_no_pairs(journey: Journey, tiny_sd: Path):
    main(["test", "--config", str(journey(tiny_sd, {}))])
    assert not Path("store").exists()
