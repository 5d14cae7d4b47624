"""The demo in small: its own config with fewer prompts, and hallucination falls. `make prove` is the full form."""

import json
from pathlib import Path

import pytest
import yaml

from synthalign.cli import main

ROOT = Path(__file__).parents[1]


def test_hallucination_falls_and_coverage_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)  # the config names the shipped weights from here
    text = (ROOT / "configs" / "demo.yaml").read_text().replace("runs/demo", str(tmp_path))
    config = yaml.safe_load(text)
    config["trainer"]["max_epochs"] = 4  # as many steps from fewer pairs
    captions, save, _ = config["trainer"]["callbacks"]
    captions["init_args"] = {"evals": captions["init_args"]["evals"][:1], "every_n_epochs": 4}
    config["trainer"]["callbacks"] = [captions, save]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["world", str(tmp_path / "world"), "--num-prompts", "120", "--num-scenes", "1"])
    main(["fit", "--config", str(tmp_path / "config.yaml")])
    results = json.loads((tmp_path / "fit" / "results.json").read_text())
    before, after = results["before"], results["after"]
    assert before["chair_plain/chair_i"] >= 0.08
    assert after["chair_plain/chair_i"] <= 0.6 * before["chair_plain/chair_i"]
    assert after["chair_plain/coverage"] >= 0.95 * before["chair_plain/coverage"]
    assert abs(after["chair_plain/words"] / before["chair_plain/words"] - 1) <= 0.2
