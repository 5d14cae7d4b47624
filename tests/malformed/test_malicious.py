"""A pickle that is a program, and a model's own code, are refused in one line wherever planted, and not run."""

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from malformed.judged import LINE, judge
from malformed.malicious import PICKLES, plain
from malformed.world import World, build
from rewards.small_models import build_hps, build_image_reward
from small_synthesis import prompt_rows, write_prompts

Make = Callable[[Path], bytes]
Refused = Callable[..., str]

FIT = ["fit", "--config", "config.yaml", "--trainer.max_steps", "1"]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("small"))


@pytest.fixture
def world(valid: World, tmp_path: Path) -> World:
    """A copy to plant something in, the policy as well."""
    shutil.copytree(valid.folder, tmp_path / "world")
    shutil.copytree(valid.policy, tmp_path / "world" / "policy")
    config = tmp_path / "world" / "config.yaml"
    config.write_text(config.read_text("utf-8").replace(str(valid.policy), "policy"), encoding="utf-8")
    return World(tmp_path / "world", tmp_path / "world" / "policy")


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    return tmp_path / "it-was-run"


@pytest.fixture
def refused(world: World, witness: Path) -> Refused:
    """Run a command, which must end in one line and run nothing; give the line."""

    def run(*argv: str) -> str:
        outcome = judge(world.folder, argv)
        assert not witness.exists()
        assert outcome.ending == LINE, outcome.said
        return outcome.said

    return run


@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
def test_who_trusts_such_a_file_runs_it(make: Make, witness: Path, tmp_path: Path):
    (tmp_path / "file").write_bytes(make(witness))
    with contextlib.suppress(Exception):
        if make is plain:
            pickle.loads(make(witness))
        else:
            torch.load(tmp_path / "file", weights_only=False)
    assert witness.exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
def test_as_a_checkpoint(make: Make, command: str, world: World, witness: Path, refused: Refused):
    (world.folder / "evil.ckpt").write_bytes(make(witness))
    assert "evil.ckpt" in refused(command, *FIT[1:], "--ckpt_path", "evil.ckpt")


def test_as_the_metadata_of_a_sharded_checkpoint(world: World, witness: Path, refused: Refused):
    (world.folder / "shards").mkdir()
    (world.folder / "shards" / ".metadata").write_bytes(plain(witness))
    assert "shards" in refused(*FIT, "--ckpt_path", "shards")


@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
def test_as_the_weights_of_an_adapter(make: Make, world: World, witness: Path, refused: Refused):
    (world.folder / "adapter" / "adapter_model.safetensors").unlink()
    (world.folder / "adapter" / "adapter_model.bin").write_bytes(make(witness))
    assert "adapter" in refused(*FIT, "--model.init_args.adapter", "adapter")


@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
def test_as_the_weights_of_a_policy(make: Make, world: World, witness: Path, refused: Refused):
    (world.policy / "model.safetensors").unlink()
    (world.policy / "pytorch_model.bin").write_bytes(make(witness))
    assert "policy" in refused(*FIT)


REWARDS = {"ImageRewardV1": ("image_reward", "ImageReward.pt"), "HPSReward": ("hps", "HPS_v2.1_compressed.pt")}


@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize("reward", REWARDS)
def test_as_a_reward_file(
    reward: str, make: Make, world: World, witness: Path, refused: Refused, tiny_reward: Path, tmp_path: Path
):
    room, file = REWARDS[reward]
    folder = world.folder / "reward"
    folder.mkdir()
    if reward == "HPSReward":
        settings = {"clip": str(build_hps(folder) / "clip")}
    else:
        settings = {"tokenizer": str(build_image_reward(folder) / "bert")}
    (folder / file).write_bytes(make(witness))
    write_prompts(world.folder / "prompts.jsonl", prompt_rows(2, 1))
    settings |= {"model": "reward"}
    synthesis = {
        "prompts": "prompts.jsonl",
        "store": "store",
        "generator": {"class_path": "synthalign.world.generator.Renderer"},
        "image_reward": {"class_path": f"synthalign.rewards.{room}.{reward}", "init_args": settings},
        "num_samples": 2,
        "responders": [{"class_path": "synthalign.vlm.VLM", "init_args": {"model": "policy"}}],
        "response_reward": {
            "class_path": "synthalign.rewards.sequence_classification.SequenceClassificationReward",
            "init_args": {"model": str(tiny_reward)},
        },
    }
    config = yaml.safe_load((world.folder / "config.yaml").read_text("utf-8"))
    config["data"]["init_args"] = {"synthesis": synthesis}
    (world.folder / "synthesis.yaml").write_text(yaml.safe_dump(config))
    assert file in refused("synthesize", "--config", "synthesis.yaml")


NAMES = ("evil.pkl", "evil.json", "evil.jsonl", "evil.parquet", "evil.table", "evil.arrow", "evil.pt")


@pytest.mark.parametrize("name", NAMES)
def test_as_a_set_of_pairs(name: str, world: World, witness: Path, refused: Refused):
    (world.folder / name).write_bytes(plain(witness))
    assert name in refused("convert", name, "out", "--format", "trl")
    assert name in refused(*FIT, "--data.init_args.pairs", name)


@pytest.mark.parametrize("column", ["images", "chosen", "prompt"])
def test_as_a_column_of_pairs(column: str, world: World, witness: Path, refused: Refused):
    path = world.folder / "trl" / "train-00000.parquet"
    table = pq.read_table(path)
    cells = pa.array([plain(witness)] * len(table), pa.binary())
    pq.write_table(table.set_column(table.column_names.index(column), column, cells), path)
    assert "train-00000.parquet" in refused("convert", str(path.relative_to(world.folder)), "out", "--format", "trl")
    assert "trl" in refused(*FIT, "--data.init_args.pairs", "trl")


def test_as_the_type_of_a_column(world: World, witness: Path, refused: Refused):
    """Arrow's types written in Python once named themselves by a pickle."""
    path = world.folder / "trl" / "train-00000.parquet"
    table = pq.read_table(path)
    named = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": plain(witness)}
    fields = [field.with_metadata(named) if field.name == "id" else field for field in table.schema]
    pq.write_table(pa.Table.from_arrays(table.columns, schema=pa.schema(fields)), path)
    outcome = judge(world.folder, ["convert", "trl/train-00000.parquet", "out", "--format", "trl"])
    assert not witness.exists()
    assert outcome.ending != "fault", outcome.said


def test_as_the_script_of_a_dataset(world: World, witness: Path, refused: Refused):
    folder = world.folder / "owner" / "evil"
    folder.mkdir(parents=True)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(witness)!r})\n")
    assert "owner/evil" in refused("convert", "owner/evil", "out", "--format", "trl")
    assert "owner/evil" in refused(*FIT, "--data.init_args.pairs", "owner/evil")


def test_as_an_image(world: World, witness: Path, refused: Refused):
    image = next((world.folder / "set" / "images").iterdir())
    image.write_bytes(plain(witness))
    assert image.name in refused("convert", "set/pairs.json", "out", "--format", "trl")
    assert image.name in refused(*FIT)


CODE = {
    "config.json": "AutoModelForImageTextToText",
    "processor_config.json": "AutoProcessor",
    "tokenizer_config.json": "AutoTokenizer",
}


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("name", CODE)
def test_a_models_own_code(name: str, unknown: bool, world: World, witness: Path, refused: Refused):
    (world.policy / "evil.py").write_text(f"import os\nos.mkdir({str(witness)!r})\n")
    path = world.policy / name
    said = json.loads(path.read_bytes())
    theirs = {"AutoConfig": "evil.Evil", CODE[name]: "evil.Evil" if "Token" not in CODE[name] else ["evil.Evil", None]}
    if unknown:  # to transformers, whose own class is taken otherwise, and this one left alone
        said |= {key: "Evil" for key in ("model_type", "processor_class", "tokenizer_class") if key in said}
    path.write_text(json.dumps({**said, "auto_map": theirs}))
    outcome = judge(world.folder, FIT)
    assert not witness.exists()
    assert outcome.ending != "fault", outcome.said


def test_a_chat_template_that_reaches_for_more(world: World, witness: Path, refused: Refused):
    reach = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.mkdir('WITNESS') }}"
    reach = reach.replace("WITNESS", str(witness))
    assert "chat template" in refused(*FIT, "--model.init_args.chat_template", reach)


@pytest.mark.parametrize("part", ["loss", "schedule", "lora"])
def test_a_config_that_names_a_function(part: str, world: World, witness: Path, refused: Refused):
    config = yaml.safe_load((world.folder / "config.yaml").read_text("utf-8"))
    config["model"]["init_args"][part] = {"class_path": "os.mkdir", "init_args": {"path": str(witness)}}
    (world.folder / "evil.yaml").write_text(yaml.safe_dump(config))
    assert part in refused("fit", "--config", "evil.yaml")


def test_an_adapter_that_names_a_module_to_import(world: World, witness: Path, refused: Refused, monkeypatch):
    (world.folder / "evil_module.py").write_text(f"import os\nos.mkdir({str(witness)!r})\n")
    monkeypatch.syspath_prepend(world.folder)
    path = world.folder / "adapter" / "adapter_config.json"
    named = {"megatron_config": {"x": 1}, "megatron_core": "evil_module"}
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **named}))
    assert "megatron_config" in refused(*FIT, "--model.init_args.adapter", "adapter")
