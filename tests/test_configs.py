"""Every shipped config runs, under an overlay that replaces only paths, model folders, sizes and counts."""

import json
import os
from pathlib import Path
from typing import Any

import drawings
import pytest
import tiny
import torch
import writers
import yaml
from rewards.small_models import build_armorm, build_image_reward
from transformers import AutoTokenizer

from synthalign.cli import main
from synthalign.world.data import write as write_world

SPLITS = ("random", "popular", "adversarial")
CONFIGS = Path(__file__).parents[1] / "configs"
COUNTS = {
    "analysis_tokens": 3,
    "CHAIR/num_images": 2,
    **{f"{part}/max_new_tokens": 8 for part in ("AMBER", "CHAIR")},
    "max_new_tokens": 72,
    "num_inference_steps": 2,
    "num_workers": 0,
    "shard_size": 2,
    "num_samples": 2,
    "max_length": 512,
}


def armorm_ids(model: Path) -> list[int]:
    """What stands between a question and its answer, as a small ArmoRM writes it."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return list(tokenizer("<|eot|><|start|>assistant<|end|>\n\n", add_special_tokens=False).input_ids)


def overlay(config: dict[str, Any], files: dict[str, Path], models: dict[str, Path]) -> dict[str, Any]:
    """The same config with other paths, model folders, sizes and counts. References stay as they are."""

    def walk(node: Any, key: str, part: str) -> Any:
        if isinstance(node, dict):
            part = node.get("class_path", part).rpartition(".")[2]
            if part == "ArmoRMReward" and "model" in node:  # these go with the tokenizer
                node = {**node, "answer_ids": armorm_ids(models[part])}
            if part in ("AMBER", "CHAIR") and "images" in node:  # which allow descriptions of 512 tokens
                node = {**node, "max_new_tokens": 512}
            if part == "DiffusionGenerator" and "model" in node:  # the small one has neither variants nor a T5
                node = {**node, "variant": None, "without": ["text_encoder_3", "tokenizer_3"]}
            return {k: walk(v, f"pope/{k}" if k in SPLITS else k, part) for k, v in node.items()}
        if isinstance(node, list):
            return [walk(item, key, part) for item in node]
        if isinstance(node, str) and node.startswith("${"):
            return node
        if key in ("model", "policy", "processor"):
            return str(models.get(str(node), models[part]))
        if key == "tokenizer":
            return str(models[part] / "bert")
        if key == "pairs" and node is None:
            return None
        if key in files or f"{part}/{key}" in files:
            return str(files.get(f"{part}/{key}", files.get(key)))
        return COUNTS.get(f"{part}/{key}", COUNTS.get(key, node))

    shrunk = walk(config, "", "")
    shrunk.setdefault("trainer", {}).update({"max_steps": 2, "devices": 1, "accumulate_grad_batches": 1})
    return shrunk


@pytest.fixture
def models(
    tiny_clip: Path, tiny_reward: Path, tiny_sd3: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    speaks = CONFIGS.parent / "synthalign" / "world" / "weights" / "vlm"  # in sentences, which a random one never ends
    return {
        **{  # three that answer differently; 4-bit kernels take nothing narrower than 64
            f"llava-hf/llava-v1.6-vicuna-{size}-hf": tiny.build_llava(tmp_path_factory.mktemp(size), n, hidden_size=64)
            for n, size in enumerate(["7b", "13b"])
        },
        "DPOModule": speaks,
        "VLM": speaks,
        "VLMJudge": speaks,
        "LLM": writers.build_llm(tmp_path_factory.mktemp("llm")),
        "ImageRewardV1": build_image_reward(tmp_path_factory.mktemp("image-reward")),
        "ArmoRMReward": build_armorm(tmp_path_factory.mktemp("armorm")),
        "CLIPReward": tiny_clip,
        "SequenceClassificationReward": tiny_reward,
        "DiffusionGenerator": tiny_sd3,
    }


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    drawings.write_benchmarks(tmp_path / "bench")
    drawings.write_pairs(tmp_path / "bench" / "pairs.json", tmp_path / "bench" / "images")
    write_world(tmp_path / "world", seed=0, num_prompts=4, questions_per_prompt=2, num_scenes=2)
    bench = tmp_path / "bench"
    return {
        **{f"pope/{split}": bench / "pope" / f"{split}.json" for split in SPLITS},
        "images": bench / "images",
        "MMHal/file": bench / "mmhal.json",
        "CHAIR/file": bench / "captions.jsonl",
        "synonyms": bench / "objects.txt",
        "AMBER/folder": bench / "amber",
        "MME/folder": bench / "mme",
        "MME/images": bench / "mme",
        "KeptJudgements/folder": tmp_path / "judgements",
        "pairs": bench / "pairs.json",
        "prompts": tmp_path / "world" / "prompts.jsonl",
        "store": tmp_path / "store",
    }


def run(command: str, names: list[str], files: dict[str, Path], models: dict[str, Path]) -> None:
    """Run configs one over the other, each followed by its overlay."""
    args = [command]
    for name in names:
        config = yaml.safe_load((CONFIGS / name).read_text())
        small = Path(name.replace("/", "-"))
        small.write_text(yaml.safe_dump(overlay(config, files, models)))
        args += ["--config", str(CONFIGS / name), "--config", str(small)]
    main(args)


@pytest.mark.parametrize(
    "names",
    [
        ["demo.yaml"],
        ["llava15_7b.yaml"],
        ["paper.yaml"],
        ["single_gpu.yaml"],
        ["llava15_7b.yaml", "qlora.yaml"],
        ["llava15_7b.yaml", "full.yaml"],
        ["llava15_7b.yaml", "strategy/ddp.yaml"],
        ["llava15_7b.yaml", "strategy/model_parallel.yaml"],
        *(["demo.yaml", str(path.relative_to(CONFIGS))] for path in sorted((CONFIGS / "sweeps").rglob("*.yaml"))),
    ],
    ids=lambda names: names[-1],
)
def test_a_shipped_config_trains_two_steps(names: list[str], files: dict[str, Path], models: dict[str, Path]):
    run("fit", names, files, models)
    folder = f"runs/{names[0].removesuffix('.yaml')}"
    if "sweeps" in names[-1]:
        folder = f"runs/sweeps/beta-{Path(names[-1]).stem}"
    whole = names[-1] == "full.yaml"
    assert (
        Path(folder) / "fit" / ("model/model.safetensors" if whole else "adapter/adapter_model.safetensors")
    ).is_file()
    assert (Path(folder) / "fit" / "results.json").is_file()
    losses = (Path(folder) / "fit" / "metrics.csv").read_text()
    assert "train/loss" in losses
    assert (
        not torch.distributed.is_initialized() and not {"MASTER_PORT", "LOCAL_RANK", "WORLD_SIZE"} & os.environ.keys()
    )


def test_the_heldout_overlay_tests_what_the_demo_trains(files: dict[str, Path], models: dict[str, Path]):
    run("test", ["demo.yaml", "demo_heldout.yaml"], files, models)
    assert (Path("runs/demo/test/results.json")).is_file()


def test_the_benchmarks_overlay_tests_any_model(files: dict[str, Path], models: dict[str, Path]):
    run("test", ["llava15_7b.yaml", "benchmarks.yaml"], files, models)
    results = json.loads(Path("runs/llava15_7b/test/results.json").read_text())
    assert {key.split("/")[0] for key in results["after"]} == {"pope", "mmhal", "chair_plain", "amber", "mme"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it runs")
def test_the_older_fsdp_says_that_it_wants_a_gpu(files: dict[str, Path], models: dict[str, Path], capsys):
    with pytest.raises(SystemExit):
        run("fit", ["llava15_7b.yaml", "strategy/fsdp.yaml"], files, models)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("synthalign: error:"))
    assert "CUDAAccelerator" in line


def test_every_config_is_run_by_a_test_of_this_file():
    tried = {"benchmarks.yaml", "demo.yaml", "demo_heldout.yaml", "llava15_7b.yaml", "paper.yaml", "single_gpu.yaml"}
    tried |= {"full.yaml", "qlora.yaml"}
    assert {path.name for path in (CONFIGS / "strategy").iterdir()} == {"ddp.yaml", "fsdp.yaml", "model_parallel.yaml"}
    elsewhere = {"slurm.yaml"}  # with the cluster that it takes: tests/resume/test_signals.py
    assert {path.name for path in CONFIGS.glob("*.yaml")} == tried | elsewhere
