"""What is exported gives the answers of the policy in training, token for token, where synthalign is not installed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from dpo.drawn_pairs import draw, write_set
from exported_runs import NEW_TOKENS, greedy, write_config
from PIL import Image
from pope_questions import row, write
from vlm.eleven import ELEVEN
from vlm.hub_folders import build

from synthalign.cli import main
from synthalign.dpo.policy import load_policy
from synthalign.export import write as export
from synthalign.vlm import Chat

QUESTIONS = ["Describe the image in detail.", "What colour is the circle?", "Is there a cup?"]

SYSTEM = "Say yes or say no."
TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + ': ' }}
    {%- for part in message.content %}{{- '<image>' if part.type == 'image' else part.text }}{% endfor %}
    {{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant: ' }}{% endif %}"""

# Runs each export's own code, as its card has it, and then asks the model that it loaded everything else.
READER = """
import contextlib, io, json, os, re, sys
sys.modules["synthalign"] = None
import torch

limit, questions, found = sys.argv[1], json.loads(sys.argv[2]), {}
for place in sys.argv[3:]:
    around, name = os.path.split(place)
    os.chdir(around)
    code = re.search(r"```python\\n(.*?)```", open(f"{name}/README.md").read(), re.S)[1]
    names, said = {}, io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code.replace("max_new_tokens=256", f"max_new_tokens={limit}"), names)
    tokens = []
    for question in questions:
        names["messages"][-1]["content"][1]["text"] = question
        inputs = names["processor"].apply_chat_template(
            names["messages"], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            row = names["model"].generate(**inputs, do_sample=False, max_new_tokens=int(limit))
        tokens.append(row[0, inputs["input_ids"].shape[1]:].tolist())
    found[place] = {"said": said.getvalue().strip(), "tokens": tokens}
del sys.modules["synthalign"]
assert not any(name.partition(".")[0] == "synthalign" for name in sys.modules)
print(json.dumps(found))
"""


def config(policy: Path, **arguments: Any) -> dict[str, Any]:
    pope = {"files": {"random": "pope.jsonl"}, "images": "set/images", "max_new_tokens": 3}
    answers = {"image": "image.jpg", "questions": QUESTIONS, "out": "answers.json"}
    return {
        "seed_everything": 1,
        "trainer": {
            "default_root_dir": "run",
            "accelerator": "cpu",
            "max_epochs": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "Evaluate", "init_args": {"evals": [{"class_path": POPE, "init_args": pope}]}},
                {"class_path": "SaveAdapter"},
                {"class_path": "exported_runs.Answers", "init_args": answers},
                {
                    "class_path": "ModelCheckpoint",
                    "init_args": {"filename": "{step}", "save_on_train_epoch_end": True, "save_top_k": -1},
                },
            ],
        },
        "model": {
            "class_path": "DPOModule",
            "init_args": {
                "policy": str(policy),
                "dtype": "float32",
                "lora": {"r": 4, "alpha": 16},
                "loss": {"class_path": "synthalign.dpo.losses.DPO", "init_args": {"beta": 0.5}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}},
                **arguments,
            },
        },
        "data": {
            "class_path": "SyntheticPreferenceDataModule",
            "init_args": {"pairs": "set/pairs.json", "batch_size": 4},
        },
    }


POPE = "synthalign.evals.pope.POPE"


class Fitted(NamedTuple):
    folder: Path
    adapter: Path
    merged: Path
    checkpoint: Path  # its adapter, merged

    @property
    def answers(self) -> dict[str, Any]:
        return json.loads((self.folder / "answers.json").read_text())


def fit(folder: Path, policy: Path, **arguments: Any) -> Fitted:
    write_set(folder / "set")
    draw("red circle on white", (40, 40)).save(folder / "image.jpg", quality=95)
    asked = [row(n, "red-circle-on-white.png", f"Is there a {thing}?") for n, thing in enumerate(["cup", "dog"])]
    write(folder / "pope.jsonl", asked)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(policy, **arguments)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["synthalign"])  # the command line writes it
        main(["fit", "--config", "config.yaml"])
        main(["export", "run/fit", "adapter"])
        main(["export", "run/fit", "merged", "--merged"])
        main(["export", "run/fit/checkpoints/step=2.ckpt", "checkpoint", "--merged"])
    return Fitted(folder, *(folder / name for name in ("adapter", "merged", "checkpoint")))


@pytest.fixture(scope="module")
def llava(tmp_path_factory, tiny_llava) -> Fitted:
    return fit(tmp_path_factory.mktemp("llava"), tiny_llava, system_prompt=SYSTEM)


@pytest.fixture(scope="module")
def idefics(tmp_path_factory) -> Fitted:
    folder = tmp_path_factory.mktemp("idefics")
    family = next(one for one in ELEVEN if one.name == "idefics3")
    return fit(folder, build(family, folder / "model"), chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def narrow(llava, tiny_llava, tmp_path_factory) -> Path:
    """The same adapter, by a run in bfloat16."""
    folder = tmp_path_factory.mktemp("narrow")
    run = write_config(folder / "run", tiny_llava, dtype="bfloat16", system_prompt=SYSTEM)
    shutil.copytree(llava.adapter, run / "adapter")
    shutil.copyfile(llava.folder / "image.jpg", folder / "image.jpg")
    return export(run, folder / "narrow").path


@pytest.fixture(scope="module")
def read(llava, idefics, narrow) -> dict[str, Any]:
    """What a process without synthalign gets out of every export."""
    places = [str(place) for one in (llava, idefics) for place in (one.adapter, one.merged, one.checkpoint)]
    places.append(str(narrow))
    command = [sys.executable, "-c", READER, str(NEW_TOKENS), json.dumps(QUESTIONS), *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("form", ["adapter", "merged", "checkpoint"])
@pytest.mark.parametrize("family", ["llava", "idefics"])
def test_every_token_is_that_of_the_policy_in_training(family, form, read, request):
    fitted: Fitted = request.getfixturevalue(family)
    theirs = read[str(getattr(fitted, form))]
    assert theirs["tokens"] == fitted.answers["tokens"]
    assert theirs["said"] == fitted.answers["after"][0]  # to the code's own question
    assert fitted.answers["after"] != fitted.answers["before"]
    assert len(set(fitted.answers["after"])) > 1


def test_an_adapter_of_a_run_in_bfloat16_is_read_in_it(narrow, read, llava, tiny_llava):
    assert "dtype='bfloat16'" in (narrow / "README.md").read_text()
    policy = load_policy(str(tiny_llava), dtype="bfloat16", adapter=str(llava.adapter)).eval()
    chat, image = Chat(model=str(tiny_llava), system_prompt=SYSTEM), Image.open(llava.folder / "image.jpg")
    assert read[str(narrow)]["tokens"] == [greedy(policy, chat.inputs([image], [one])) for one in QUESTIONS]


def test_the_card_has_the_runs_own_figures(llava):
    results = json.loads((llava.folder / "run/fit/results.json").read_text())
    card = (llava.merged / "README.md").read_text()
    for when in ("before", "after"):
        value = results[when]["pope/random/accuracy"]
        assert f"{100 * value:.1f} %" in next(line for line in card.splitlines() if "random/accuracy" in line)
    assert "parser: official" in card
