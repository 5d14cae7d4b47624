"""Makes image_reward.json: scores of the authors' own ImageReward, made tiny, on weights drawn by drawn.py.

Their package does not run beside ours. Install it apart, and run this from tests/rewards:

    pip install --target oracle torch==2.13.0 torchvision==0.28.0 numpy pillow
    pip install --target oracle transformers==4.40.2 timm==0.6.13
    pip install --target oracle --no-deps image-reward==1.5
    PYTHONPATH=oracle:.. python make_image_reward_golden.py
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
from rewards.drawn import draw_images, draw_weights

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cup", "on", "the", "long", "table", "##s", ","]
PROMPTS = ["a red cup", "A RED cups, on the unknown table", "a", "the long table on " * 20, "[ENC] cup"]
SIZES = [(40, 30), (30, 57), (32, 32), (200, 70), (17, 23)]
SIDE, WIDTH, SHAPE = 32, 128, {"patch_size": 16, "depth": 2, "num_heads": 2}
TEXT = {
    "vocab_size": len(VOCABULARY) + 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "add_cross_attention": True,
    "add_type_embeddings": False,
    "model_type": "bert",
    "pad_token_id": 0,
}

# Neither is needed for scoring: a wrapper for training, and the package's own start, which imports much more.
fairscale = ModuleType("fairscale.nn.checkpoint.checkpoint_activations")
vars(fairscale)["checkpoint_wrapper"] = lambda module: module
sys.modules[fairscale.__name__] = fairscale
spec = importlib.util.find_spec("ImageReward")
assert spec is not None and spec.submodule_search_locations is not None
root = Path(spec.submodule_search_locations[0])
for name, folder in (("ImageReward", root), ("ImageReward.models", root / "models")):
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package

from ImageReward import ImageReward as theirs  # noqa: E402
from ImageReward.models.BLIP import blip_pretrain  # noqa: E402
from ImageReward.models.BLIP.vit import VisionTransformer  # noqa: E402
from transformers import BertTokenizer  # noqa: E402


def tokenizer() -> BertTokenizer:
    """BERT's, over a small vocabulary, with the two tokens their init_tokenizer adds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(VOCABULARY))
        small = BertTokenizer(str(path))
    small.add_special_tokens({"bos_token": "[DEC]"})
    small.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return small


blip_pretrain.init_tokenizer = tokenizer
blip_pretrain.create_vit = lambda *_: (VisionTransformer(img_size=SIDE, embed_dim=WIDTH, **SHAPE), WIDTH)
head = theirs.MLP
theirs.MLP = lambda _: head(TEXT["hidden_size"])

with tempfile.TemporaryDirectory() as apart:
    config = Path(apart) / "med_config.json"
    config.write_text(json.dumps(TEXT))
    model = theirs.ImageReward(str(config)).eval()
model.preprocess = theirs._transform(SIDE)
buffers = {name for name, _ in model.named_buffers()}
shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if name not in buffers}
missing = set(model.load_state_dict(draw_weights(shapes), strict=False).missing_keys)
assert missing <= buffers, missing
with torch.no_grad():
    scores = [model.score(prompt, image) for prompt, image in zip(PROMPTS, draw_images(SIZES), strict=True)]

golden = {"config": TEXT, "vocabulary": VOCABULARY, "prompts": PROMPTS, "sizes": SIZES, "scores": scores}
golden |= {"buffers": sorted(buffers), "shapes": shapes}
lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
Path("image_reward.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
print(scores)
