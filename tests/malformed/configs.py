"""Configs as people mistype them, and as no person would."""

from pathlib import Path

import yaml
from malformed.torn import Draw, one_of, tear
from malformed.trees import VALUES, spoil

TEXTS = (
    "a: &a [x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nd: [*c, *c, *c]\n",
    "trainer: &t\n  <<: *t\n",
    "trainer: &t [*t]\n",
    "trainer: *nobody\n",
    "trainer: !!python/object/apply:os.system ['true']\n",
    "trainer: !!binary gIGC\n",
    "trainer: ${trainer}\n",
    "trainer: ${oc.env:NOBODY_SET_THIS}\n",
    "trainer: ${oc.decode:'{'}\n",
    "---\n---\n",
    "\ttrainer:\n",
    "? [a, b]\n: c\n",
    "1: 2\n",
    "- a\n- b\n",
    "trainer\n",
    "%YAML 9.9\n---\ntrainer: {}\n",
    "trainer: {max_epochs: 1, max_epochs: 2}\n",
    "subcommand: test\n",
    "fit: {trainer: {max_epochs: 1}}\n",
    "data: {class_path: DPOModule}\n",
    "model: {class_path: SyntheticPreferenceDataModule}\n",
    "{" * 300 + "\n",
    "[" * 3000 + "\n",
)
"""Laid over the valid config, or put behind its text."""

KEYS = {
    "trainer": "precision strategy gradient_clip_val accumulate_grad_batches limit_train_batches val_check_interval "
    "max_time logger profiler callbacks accelerator nowhere",
    "model": "revision adapter dtype system_prompt chat_template layout reference fused keep_features_gib "
    "max_chosen_fall loss optimizer schedule lora nowhere",
    "data": "synthesis pairs images response_gates pair_gates balance_yes_no max_length val_share max_tokens "
    "shares_images seed chat nowhere",
}
"""Keys that a config may have, and one that none has."""

BOUNDS = ["--trainer.max_steps", "1", "--trainer.devices", "1", "--trainer.default_root_dir", "out"]
BOUNDS += ["--data.init_args.num_workers", "0"]
"""Flags that keep an example short and inside its folder, whatever a config says."""


def malform(folder: Path, draw: Draw) -> tuple[list[str], str]:
    """Spoil the config of a folder; return the command to run there, and what was done."""
    path, command = folder / "config.yaml", one_of(draw, ["fit", "fit", "validate", "test", "synthesize"])
    configs = ["--config", "config.yaml"]
    way = one_of(draw, ["a value", "a value", "a value", "a key", "a key", "a text", "torn"])
    valid = yaml.safe_load(path.read_text("utf-8"))
    if way == "a value":
        spoilt, way = spoil(valid, draw)
        path.write_text(yaml.safe_dump(spoilt), encoding="utf-8")
    elif way == "a key":
        part = one_of(draw, sorted(KEYS))
        key, value = one_of(draw, KEYS[part].split()), one_of(draw, VALUES)
        (valid[part] if part == "trainer" else valid[part]["init_args"])[key] = value
        path.write_text(yaml.safe_dump(valid), encoding="utf-8")
        way = f"{part}: {key}: {value!r}"
    elif way == "a text":
        text = one_of(draw, TEXTS)
        if one_of(draw, [True, False]):
            (folder / "over.yaml").write_text(text, encoding="utf-8")
            configs += ["--config", "over.yaml"]
        else:
            path.write_text(path.read_text("utf-8") + text, encoding="utf-8")
        way = repr(text[:60])
    else:
        way = tear(path, draw, [folder / "set" / "pairs.json", folder / "last.ckpt"])
    return [command, *configs, *BOUNDS], f"{command}, {way}"
