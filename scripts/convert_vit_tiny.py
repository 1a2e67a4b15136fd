"""usage: python scripts/convert_vit_tiny.py REPOSITORY_CLONE OUT

Writes a ViT-Tiny/16 trained on ImageNet, 224 x 224, 5.7 million weights, as a folder that transformers loads and
`toolkit preprocess --encoder OUT` takes. REPOSITORY_CLONE is a clone, bare or not, of

    https://github.com/codr-shiv/VisionTransformer

a ViT in C, whose weights are read at the commit below, whatever is checked out. The result is then tried on the pictures
of ImageNet that the repository holds: 15 of the 17 are named right, by a wrong converter next to none. (The two are a cock,
where the model sees a hen, and a cocktail shaker, where it sees a bottle of wine.)
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import ViTForImageClassification, ViTImageProcessorPil

COMMIT = "b2d262d36f396b384303fcea46f28f82c366a732"
PICTURES = "dataset/ImageNetSelected"
WIDTH, LAYERS = 192, 12
CONFIG = {
    "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS, "num_attention_heads": 3, "intermediate_size": 4 * WIDTH, "patch_size": 16,
    "image_size": 224, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "torch_dtype": "float32", "num_labels": 1000,
}  # fmt: skip
PREPROCESSOR = {
    "do_resize": True, "size": {"height": 224, "width": 224}, "do_normalize": True, "do_rescale": True,
    "rescale_factor": 1 / 255, "resample": 3, "image_processor_type": "ViTImageProcessor",
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
# The class of each picture's synset among ImageNet's 1,000: what the picture shows, not what a model said of it.
SYNSETS = {
    "n01514668": 7, "n01687978": 42, "n01735189": 57, "n01847000": 97, "n01855032": 98, "n02018795": 138,
    "n02025239": 139, "n02113978": 268, "n02125311": 286, "n02127052": 287, "n02231487": 313, "n02412080": 348,
    "n02493509": 380, "n03032252": 498, "n03062245": 503, "n03240683": 540, "n03764736": 653,
}  # fmt: skip


def read_files(clone: str) -> dict[str, bytes]:
    """The weights' and pictures' files at `COMMIT`, by their path in the repository."""
    command = ["git", "-C", clone, "archive", COMMIT, "parameters", PICTURES]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        sys.exit(f"{clone}: no clone that holds commit {COMMIT} ({done.stderr.decode().strip().splitlines()[-1]})")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        return {m.name: file.read() for m in archive if (file := archive.extractfile(m)) is not None}


def read_tensor(data: bytes, axes: int) -> torch.Tensor:
    """A file of `parameters/`: so many int32 sizes, then float32 values, little-endian."""
    shape = np.frombuffer(data, "<i4", axes)
    return torch.from_numpy(np.frombuffer(data, "<f4", offset=4 * axes).reshape(shape).copy())


def state_dict(files: dict[str, bytes]) -> dict[str, torch.Tensor]:
    """The weights under transformers' names. Those of query, key and value lie in one tensor, (3 x 192, 192)."""

    def tensor(name: str, axes: int) -> torch.Tensor:
        return read_tensor(files[f"parameters/{name}.bin"], axes)

    def both(name: str) -> dict[str, torch.Tensor]:
        return {"weight": tensor(f"{name}_weight", 1 if "norm" in name else 2), "bias": tensor(f"{name}_bias", 1)}

    state = {
        "vit.embeddings.cls_token": tensor("cls_token", 3),
        "vit.embeddings.position_embeddings": tensor("pos_embed", 3),
        "vit.embeddings.patch_embeddings.projection.weight": tensor("patch_embed_proj_weight", 4),
        "vit.embeddings.patch_embeddings.projection.bias": tensor("patch_embed_proj_bias", 1),
    }
    parts = {"vit.layernorm": both("norm"), "classifier": both("head")}
    for i in range(LAYERS):
        block, layer = f"blocks_{i}", f"vit.encoder.layer.{i}"
        for kind, values in both(f"{block}_attn_qkv").items():
            for name, part in zip(("query", "key", "value"), values.split(WIDTH), strict=True):
                state[f"{layer}.attention.attention.{name}.{kind}"] = part.clone()
        parts |= {
            f"{layer}.attention.output.dense": both(f"{block}_attn_proj"),
            f"{layer}.intermediate.dense": both(f"{block}_mlp_fc1"),
            f"{layer}.output.dense": both(f"{block}_mlp_fc2"),
            f"{layer}.layernorm_before": both(f"{block}_norm1"),
            f"{layer}.layernorm_after": both(f"{block}_norm2"),
        }
    return state | {f"{part}.{kind}": value for part, values in parts.items() for kind, value in values.items()}


def named_right(folder: Path, files: dict[str, bytes]) -> list[bool]:
    """Whether the saved model names each of the repository's pictures as its synset says."""
    model, found = ViTForImageClassification.from_pretrained(folder, output_loading_info=True)
    if found["missing_keys"] or found["unexpected_keys"] or found["mismatched_keys"]:
        sys.exit(f"{folder}: transformers does not find the weights under its names ({found})")
    processor, right = ViTImageProcessorPil.from_pretrained(folder), []
    for name, data in sorted(files.items()):
        if name.endswith(".JPEG"):
            pixels = processor(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt").pixel_values
            with torch.inference_mode():
                best = int(model.eval()(pixels).logits.argmax())
            right.append(best == SYNSETS[Path(name).name.partition("_")[0]])
    return right


def main(clone: str, out: Path) -> None:
    if out.exists():
        sys.exit(f"{out}: is there already; name a new folder")
    files = read_files(clone)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as temporary:
        folder = Path(temporary) / "folder"
        folder.mkdir()
        save_file(state_dict(files), folder / "model.safetensors", {"format": "pt"})
        for name, values in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR)):
            (folder / name).write_text(json.dumps(values, indent=1) + "\n")
        right = named_right(folder, files)
        if sum(right) < 0.8 * len(right):
            sys.exit(f"{clone}: only {sum(right)} of {len(right)} pictures are named right; nothing was written")
        folder.rename(out)
    print(f"{out}: ViT-Tiny/16, {sum(right)} of {len(right)} pictures of ImageNet named right")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
