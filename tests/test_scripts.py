"""Scripts run; what they measure is not asserted."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
PHOTOS = Path(__file__).parent / "data" / "photos"


def test_notebook_baseline() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "notebook_baseline.py", PHOTOS, "--max-steps", "2", "--generate", "1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["train_captions_per_s"] > 0
    assert figures["generate_images_per_s"] > 0
    assert isinstance(figures["last_caption"], str)


def flickr8k(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", SCRIPTS / "flickr8k.sh", *arguments],
        capture_output=True, text=True, env={**os.environ, "PATH": path, **environment},
    )  # fmt: skip


def test_flickr8k_says_what_is_missing(tmp_path: Path) -> None:
    def error(**environment: str) -> str:
        done = flickr8k(str(tmp_path / "data"), OUT=str(tmp_path / "out"), **environment)
        assert done.returncode == 1
        assert done.stdout == ""
        return done.stderr.replace(str(tmp_path), "")

    assert flickr8k().stderr.startswith("usage: sh scripts/flickr8k.sh DIR")
    assert error().startswith("/data: no such folder; ")
    (tmp_path / "data").mkdir()
    assert error() == "/data: no photographs; put the 8,091 JPEG files of Flickr8k into /data/Images.\n"
    shutil.copytree(PHOTOS / "Images", tmp_path / "data" / "Flicker8k_Dataset")
    assert error().startswith("/data: no captions; put Karpathy's dataset_flickr8k.json")
    shutil.copy(PHOTOS / "captions.txt", tmp_path / "data")
    assert error().startswith(
        "/data: captions.txt has no splits; put dataset_flickr8k.json, or Flickr_8k.trainImages.txt"
    )
    karpathy(tmp_path / "data")
    text = error(ENCODER="/nowhere/vit")
    assert "--encoder /nowhere/vit: " in text
    assert "`hf download /nowhere/vit --local-dir vit`" in text
    assert not (tmp_path / "out" / "cache").exists()


def test_check_ranges_says_what_is_missing(tmp_path: Path) -> None:
    for arguments, code, sentence in (
        ([], 2, "usage: sh scripts/check_ranges.sh DIR lowest|newest [TESTS...]"),
        ([str(tmp_path / "new"), "middle"], 2, "middle: say lowest or newest"),
        ([str(tmp_path), "lowest"], 1, f"{tmp_path}: is there already; name a new folder"),
    ):
        done = subprocess.run(["sh", SCRIPTS / "check_ranges.sh", *arguments], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.strip().endswith(sentence)
    assert list(tmp_path.iterdir()) == []


def karpathy(folder: Path) -> None:
    """Karpathy's form of the photographs' captions: every third image is for validation, every third for test."""
    captions: dict[str, list[str]] = {}
    for line in (PHOTOS / "captions.txt").read_text(encoding="utf-8").splitlines()[1:]:
        name, caption = line.split(",", 1)
        captions.setdefault(name, []).append(caption.strip('"'))
    images = [
        {
            "filename": name,
            "imgid": i,
            "split": ("train", "val", "test")[i % 3],
            "sentences": [{"raw": c} for c in said],
        }
        for i, (name, said) in enumerate(captions.items())
    ]
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images, "dataset": "flickr8k"}))


def test_convert_vit_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights written as the repository has them, with query, key and value in one tensor, are found again."""
    import numpy as np
    import torch

    monkeypatch.syspath_prepend(SCRIPTS)
    import convert_vit_tiny as script

    rng, files = np.random.default_rng(0), {}

    def write(name: str, *shape: int) -> torch.Tensor:
        values = rng.standard_normal(shape).astype("<f4")
        files[f"parameters/{name}.bin"] = np.array(shape, "<i4").tobytes() + values.tobytes()
        return torch.from_numpy(values)

    expected = {
        "vit.embeddings.cls_token": write("cls_token", 1, 1, 192),
        "vit.embeddings.position_embeddings": write("pos_embed", 1, 197, 192),
        "vit.embeddings.patch_embeddings.projection.weight": write("patch_embed_proj_weight", 192, 3, 16, 16),
        "vit.embeddings.patch_embeddings.projection.bias": write("patch_embed_proj_bias", 192),
    }
    parts = [("norm", "vit.layernorm", 192), ("head", "classifier", 1000, 192)]
    for i in range(12):
        place = f"vit.encoder.layer.{i}"
        parts += [
            (f"blocks_{i}_norm1", f"{place}.layernorm_before", 192),
            (f"blocks_{i}_norm2", f"{place}.layernorm_after", 192),
            (f"blocks_{i}_attn_proj", f"{place}.attention.output.dense", 192, 192),
            (f"blocks_{i}_mlp_fc1", f"{place}.intermediate.dense", 768, 192),
            (f"blocks_{i}_mlp_fc2", f"{place}.output.dense", 192, 768),
        ]
        for kind, shape in (("weight", (576, 192)), ("bias", (576,))):
            whole = write(f"blocks_{i}_attn_qkv_{kind}", *shape)
            for name, rows in (("query", slice(0, 192)), ("key", slice(192, 384)), ("value", slice(384, None))):
                expected[f"{place}.attention.attention.{name}.{kind}"] = whole[rows]
    for theirs, ours, *shape in parts:
        expected |= {
            f"{ours}.weight": write(f"{theirs}_weight", *shape),
            f"{ours}.bias": write(f"{theirs}_bias", shape[0]),
        }
    found = script.state_dict(files)
    assert found.keys() == expected.keys()
    assert len(found) == 200
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(SystemExit, match=rf"^{tmp_path}: no clone that holds commit b2d262d"):
        script.main(str(tmp_path), tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="out: is there already; name a new folder"):
        script.main(str(tmp_path), tmp_path / "out")


@pytest.mark.slow
def test_flickr8k_to_the_row(tmp_path: Path) -> None:
    """The whole recipe on a dozen photographs and weights of a minute's size."""
    from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel

    from toolkit.models.presets import TINY_DECODER, TINY_ENCODER, tiny_image_processor, train_tokenizer

    data = tmp_path / "data"
    shutil.copytree(PHOTOS, data)
    karpathy(data)
    ViTModel(ViTConfig(**TINY_ENCODER)).save_pretrained(tmp_path / "vit")
    tiny_image_processor().save_pretrained(tmp_path / "vit")
    tokenizer = train_tokenizer((data / "captions.txt").read_text().splitlines())
    tokenizer.save_pretrained(tmp_path / "gpt2")
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **TINY_DECODER)).save_pretrained(tmp_path / "gpt2")
    weights = {"ENCODER": str(tmp_path / "vit"), "DECODER": str(tmp_path / "gpt2"), "OUT": str(tmp_path / "out")}
    done = flickr8k(str(data), "--max-steps", "4", **weights)
    assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[-1].strip("| ").split(" | ")
    assert row[:2] == [f"{tmp_path}/vit + {tmp_path}/gpt2", "4"]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert row[5].split(" ")[0] == f"{100 * scores['metrics']['cider']['score']:.1f}"
    assert (tmp_path / "out" / "evaluation.html").exists()
    assert (tmp_path / "out" / "gallery.html").exists()
    again = flickr8k(str(data), "--max-steps", "4", **weights)
    assert again.stdout.count("nothing to do") == 2
    assert again.stdout.splitlines()[-4:] == done.stdout.splitlines()[-4:]


@pytest.mark.slow
def test_flickr8k_with_a_decoder_from_scratch(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    from toolkit.models.presets import TINY_ENCODER, tiny_image_processor

    data = tmp_path / "data"
    shutil.copytree(PHOTOS, data)
    karpathy(data)
    ViTModel(ViTConfig(**{**TINY_ENCODER, "num_hidden_layers": 6})).save_pretrained(tmp_path / "vit")
    tiny_image_processor().save_pretrained(tmp_path / "vit")
    weights = {"ENCODER": str(tmp_path / "vit"), "DECODER": "small", "OUT": str(tmp_path / "out")}
    for quick in ("1", ""):
        done = flickr8k(str(data), "--max-steps", "2", **weights, QUICK=quick)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith(f"| {tmp_path}/vit + small | 4 | ")
        assert (tmp_path / "out" / "model").exists() == (not quick)


def bench(script: str, options: str) -> str:
    """What a benchmark prints."""
    done = subprocess.run([sys.executable, SCRIPTS / script, *shlex.split(options)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_bench_help() -> None:
    lines = bench("bench_help.py", "--rounds 1").splitlines()
    assert [line.split("  ")[0] for line in lines[3:5]] == ["toolkit --help", "toolkit preprocess --help"]
    assert all(float(line.split()[-1]) > 0 for line in lines[1:])


@pytest.mark.slow
def test_bench_train() -> None:
    printed = bench("bench_train.py", "--size tiny --rounds 1 --steps 1 --images 16")
    assert [line.split()[1] for line in printed.splitlines()[-3:]] == ["notebook", "full", "frozen"]
    padding = bench("bench_train.py", "--padding")
    shares = [float(cell.strip(" %")) for cell in padding.splitlines()[-1].split("|")[2:5]]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.slow
def test_bench_caption() -> None:
    printed = bench("bench_caption.py", "--size tiny --rounds 1 --images 8")
    assert "tokens as stock generate's: 8 of 8 images" in printed
    assert printed.count(" / ") == 7  # ratios


@pytest.mark.slow
def test_what_proves_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPTS / "prove_gpu.sh", tmp_path / "out", "--cpu"],
        capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    report = (tmp_path / "out" / "report.md").read_text()
    assert done.returncode == 0, report
    assert [line.split(" | ")[1] for line in report.splitlines() if line.startswith("| ")][1:5] == ["passed"] * 4


@pytest.mark.slow
def test_bench_scst() -> None:
    printed = bench("bench_scst.py", "--size tiny --rounds 1 --steps 1 --images 40 --batch-size 3 --samples 2")
    assert float(re.findall(r"by at most (\S+)", printed)[0]) < 1e-6
    assert [line.split()[1] for line in printed.splitlines()[3:]] == ["plain", "frozen", "cached"]


@pytest.mark.slow
def test_bench_precision() -> None:
    printed = bench("bench_precision.py", "--size tiny --rounds 1 --number 4")
    assert [line.split(" | ")[0] for line in printed.splitlines() if line.startswith("| ")] == [
        "| seconds", "| ---", "| encoder", "| decoding", "| files to captions", "| MB of memory", "| ---", "| largest",
        "| at the end",
    ]  # fmt: skip


@pytest.mark.slow
def test_bench_onnx() -> None:
    pytest.importorskip("onnxscript")
    printed = bench("bench_onnx.py", "--size tiny --rounds 1 --number 4")
    assert "own settings, ONNX: 4 of 4 captions are torch's in fp32" in printed
    assert "greedy, ONNX: 4 of 4 captions are torch's in fp32" in printed


@pytest.mark.slow
def test_bench_loss() -> None:
    assert bench("bench_loss.py", "--images 40 --epochs 1 --seeds 1").splitlines()[-1].startswith("| 1 | ")


@pytest.mark.slow
def test_bench_objective() -> None:
    printed = bench("bench_objective.py", "--train 40 --epochs 1 --second-epochs 1 --seeds 1 --images 120")
    assert printed.splitlines()[-1].startswith("| 1 | ")


@pytest.mark.slow
def test_bench_ablation() -> None:
    printed = bench("bench_ablation.py", "none '--augment light' --images 40 --epochs 1 --seeds 1 --pixel-margin 8")
    assert [line.split(" | ")[1] for line in printed.splitlines()[-2:]] == ["none", "--augment light"]


def test_wordings_of_other_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wording is right of its scene and of no other, either way round, and Korean particles fit their nouns."""
    import random

    monkeypatch.syspath_prepend(SCRIPTS)
    import wordings

    from toolkit.data.scenes import make_scene

    scenes = [make_scene(i, random.Random(i)) for i in range(60)]
    said = {language: [captions_of(scene) for scene in scenes] for language, captions_of in wordings.LANGUAGES.items()}
    for language, captions in said.items():
        for i, scene in enumerate(scenes):
            assert len(set(captions[i])) == 5
            assert all(wordings.judge(caption, scene, language) for caption in captions[i])
            assert not any(wordings.judge(caption, scene, language) for caption in captions[i - 1])
    single = next(scene for scene in scenes if len(scene["objects"]) == 1)
    single["objects"][0] |= {"size": "small", "colour": "red", "shape": "cross"}
    single["says"] = "on the left"
    assert wordings.korean(single)[:2] == ["왼쪽에 작은 빨간 십자가가 있다", "작은 빨간 십자가는 왼쪽에 있다"]
    assert wordings.judge("작은 빨간 십자가 하나가 왼쪽에 있다", single, "Korean")
    assert wordings.chinese(single)[0] == "左边有一个小的红色十字"
    single["objects"][0]["shape"] = "triangle"
    assert wordings.korean(single)[:2] == ["왼쪽에 작은 빨간 삼각형이 있다", "작은 빨간 삼각형은 왼쪽에 있다"]


@pytest.mark.slow
def test_bench_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One training serves both choices: training under the other tokeniser ends at the same checkpoint with the same weights."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import bench_languages as script

    def train(folder: Path, tokenize: str) -> tuple[dict[str, tuple[float, int]], list[bytes]]:
        monkeypatch.setattr(script, "TRAINED", tokenize)
        found = script.measure(folder, "Chinese", images=120, epochs=4, seed=1)
        weights = sorted((folder / "model" / "checkpoints").glob("*/model.safetensors"))
        return found, [path.read_bytes() for path in weights]

    by_auto, by_ptb = (train(tmp_path / tokenize, tokenize) for tokenize in script.CHOICES[::-1])
    assert by_auto == by_ptb
    assert len(by_auto[1]) == 4


@pytest.mark.slow
def test_bench_review() -> None:
    assert bench("bench_review.py", "--images 120 --epochs 1").splitlines()[-1].startswith("| 1 | ")


@pytest.mark.slow
def test_bench_review_page() -> None:
    assert bench("bench_review_page.py", "--images 300").startswith("300 images: first page ")
