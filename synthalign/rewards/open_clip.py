"""The weights of a CLIP that open_clip trained, under the names of transformers' CLIPModel.

Source of the names: open_clip_torch 3.3.0, model.py and transformer.py.
"""

from collections.abc import Mapping

from torch import Tensor

BEGINNINGS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
"""How a name begins, theirs to ours; the first that fits is taken."""

INSIDE = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
"""What a name has inside a block, theirs to ours."""


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of open_clip's CLIP; what CLIPModel does not have is left out."""
    renamed: dict[str, Tensor] = {}
    for theirs, tensor in tensors.items():
        beginning = next((known for known in BEGINNINGS if theirs.startswith(known)), None)
        if beginning is None:
            continue
        name = BEGINNINGS[beginning] + theirs.removeprefix(beginning)
        for known, ours in INSIDE.items():
            name = name.replace(known, ours)
        block, fused, kind = name.partition(".attn.in_proj_")
        if fused:  # the three projections of a block's input, one below the other
            for projection, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{block}.self_attn.{projection}_proj.{kind}"] = third
        elif theirs in ("visual.proj", "text_projection"):  # multiplied from the right; a layer holds the transpose
            renamed[name] = tensor.T.contiguous()
        else:
            renamed[name] = tensor
    return renamed
