"""Makes hps.json: scores of the authors' own HPSv2, made tiny, on weights drawn by drawn.py.

Their package asks for older ones than ours. Install it apart, and run this from tests/rewards:

    pip install --target oracle torch==2.13.0 torchvision==0.28.0 numpy pillow transformers==4.40.2
    pip install --target oracle timm==0.6.13 ftfy==6.3.1 clint==0.5.1
    pip install --target oracle --no-deps hpsv2==1.2.0
    PYTHONPATH=oracle:.. python make_hps_golden.py

Its wheel lacks open_clip's vocabulary, bpe_simple_vocab_16e6.txt.gz, which it reads when it is imported: copy it from
open_clip_torch into oracle/hpsv2/src/open_clip. The small one that is used here is written below.
"""

import gzip
import json
import tempfile
from pathlib import Path

import torch
from hpsv2.src.open_clip import tokenizer as words
from hpsv2.src.open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from hpsv2.src.open_clip.transform import image_transform
from rewards.drawn import draw_images, draw_weights
from torchvision.transforms import functional

MERGES = ["r e", "re d</w>", "c u", "cu p</w>", "t a", "a n"]
PROMPTS = ["a red cup", "A  RED\ncup, and 2 dogs' tables", "x", "a red cup and " * 20, "tête-à-tête"]
SIZES = [(40, 30), (30, 57), (28, 28), (200, 70), (17, 23)]
SIDE = 28
VISION = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 14, "image_size": SIDE}
TEXT = {"context_length": 77, "width": 32, "heads": 2, "layers": 2}
EMBED_DIM = 16

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "vocabulary.gz"
    path.write_bytes(gzip.compress("\n".join(["#version", *MERGES]).encode()))
    words._tokenizer = words.SimpleTokenizer(str(path))
vocabulary = [*words._tokenizer.encoder]
tokens = words.tokenize(PROMPTS)

text = CLIPTextCfg(vocab_size=len(vocabulary), **TEXT)
model = CLIP(EMBED_DIM, CLIPVisionCfg(**VISION), text, output_dict=True).eval()
shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
model.load_state_dict(draw_weights(shapes))


def score() -> list[float]:
    """Score the rows one by one, as hpsv2.img_score does."""
    preprocess = image_transform(SIDE, is_train=False, resize_longest_max=True)
    scores = []
    for prompt, image in zip(PROMPTS, draw_images(SIZES), strict=True):
        with torch.no_grad():
            outputs = model(preprocess(image)[None], words.tokenize([prompt]))
        scores.append((outputs["image_features"] @ outputs["text_features"].T).item())
    return scores


golden = {"embed_dim": EMBED_DIM, "vision": VISION, "text": TEXT, "vocabulary": vocabulary, "merges": MERGES}
golden |= {"prompts": PROMPTS, "tokens": [[i for i in row if i] for row in tokens.tolist()], "sizes": SIZES}
golden["scores"] = score()
resize = functional.resize
functional.resize = lambda *args: resize(*args, antialias=False)  # torchvision's default before 0.17
golden["scores_without_antialias"] = score()
golden["shapes"] = shapes
lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
Path("hps.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
print(golden["scores"], golden["scores_without_antialias"])
