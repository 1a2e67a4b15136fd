"""`preprocess --pixel-margin`: larger pixels in the cache, of which everything but augmentation takes the centre."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel, ViTImageProcessorPil

import toolkit.training.trainer as trainer_module
from toolkit.cache.schema import caption_view, open_cache
from toolkit.captioning.captioner import Captioner
from toolkit.commands.batch_caption import batch_caption
from toolkit.commands.evaluate import caption_split
from toolkit.commands.finetune import finetune
from toolkit.commands.preprocess import preprocess
from toolkit.data.pixels import centre
from toolkit.errors import InputError, ModelError
from toolkit.evaluation.references import Source, read_references
from toolkit.models import processors
from toolkit.models.loading import build_captioner
from toolkit.options import BatchCaptionOptions, EvaluateOptions, FinetuneOptions, GenerationOptions, PreprocessOptions
from toolkit.training.augment import STRENGTHS, Augmentation, augmented
from toolkit.training.features import encode_splits
from toolkit.training.setup import Processors

MARGIN, SEEN, STORED = 16, 64, 80


def options(sample_dir: Path, out: Path, **more: Any) -> PreprocessOptions:
    data = {"annotations": sample_dir / "captions.txt", "images": sample_dir / "Images"}
    return PreprocessOptions(**{**data, "out": out, "preset": "tiny", "num_workers": 1, "pixel_margin": MARGIN, **more})


@pytest.fixture(scope="module", autouse=True)
def _here() -> Any:
    """Processors are read in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processors, "_in_child", lambda job, request, doing: processors.JOBS[job](**request))
        yield


@pytest.fixture(scope="module")
def margin_dir(sample_dir: Path, made_once: Callable) -> Path:
    return made_once("margin/dataset", lambda out: preprocess(options(sample_dir, out)))


def test_evaluation_sees_the_centre_which_is_what_the_saved_processor_crops(
    sample_dir: Path, cache_dir: Path, margin_dir: Path
) -> None:
    cache, plain = open_cache(margin_dir), open_cache(cache_dir)
    assert (cache.shape, cache.seen) == ((3, STORED, STORED), (SEEN, SEEN))
    assert (plain.shape, plain.seen) == ((3, SEEN, SEEN), (SEEN, SEEN))
    theirs = AutoImageProcessor.from_pretrained(margin_dir / "image_processor", backend="pil")
    larger = ViTImageProcessorPil(size={"height": STORED, "width": STORED})
    normalizer, rows = Processors.of(cache).normalizer, cache["train"]
    view, captions = caption_view(load_from_disk(margin_dir)["train"]), 0
    assert rows.column("image_id") == plain["train"].column("image_id")
    assert len(rows) > 20
    for i, name in enumerate(rows.column("path")):
        image, stored = Image.open(sample_dir / "Images" / name), rows[i]["pixel_values"]
        whole = larger(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(stored, whole)
        expected = theirs(image, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(normalizer(torch.tensor(stored)[None])[0].numpy(), expected)
        assert np.array_equal(view[captions]["pixel_values"], expected)
        captions += len(rows[i]["labels"])
    assert captions == len(view)


def test_features_are_those_of_the_centre(sample_dir: Path, margin_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(margin_dir, tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    parts = Processors.of(cache)
    vocabulary = cache.manifest["labels"]["vocab_size"]
    encoder = build_captioner("", "", "tiny", vocabulary, parts.tokens, 0).encoder.eval()
    made = encode_splits(cache, ["train"], encoder, parts.normalizer, "fp32", torch.float32)["train"]
    paths = [sample_dir / "Images" / name for name in cache["train"].column("path")]
    images = parts.image_processor([Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = encoder(pixel_values=images).last_hidden_state.numpy()
    np.testing.assert_allclose(np.stack(made.gather(range(made.count))), expected, atol=1e-5)


def test_captions_from_files_are_those_from_the_cache_and_augmentation_gets_the_margin(
    sample_dir: Path, margin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = trainer_module.augmented, set()

    def seen(pixels: torch.Tensor, drawn: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        sizes.add((*pixels.shape[1:], *size))
        return real(pixels, drawn, size)

    monkeypatch.setattr(trainer_module, "augmented", seen)
    model = tmp_path / "model"
    finetune(FinetuneOptions(cache=margin_dir, output_dir=model, max_steps=3, batch_size=8, augment="light"))
    assert sizes == {(3, STORED, STORED, SEEN, SEEN)}

    pixels: list[bytes] = []
    generate = Captioner.generate

    def noted(self: Captioner, batch: torch.Tensor, *args: Any) -> Any:
        pixels.extend(image.numpy().tobytes() for image in batch)
        return generate(self, batch, *args)

    monkeypatch.setattr(Captioner, "generate", noted)
    generation = GenerationOptions(num_beams=2, max_length=12)
    evaluation = EvaluateOptions(model=str(model), references=margin_dir, split="train", generation=generation)
    found = caption_split(str(model), read_references(Source.of(evaluation), "train"), evaluation)[0].rows
    evaluated, pixels = pixels, []
    columns = (open_cache(margin_dir)["train"].column(name) for name in ("image_id", "path"))
    paths = dict(zip(*columns, strict=True))
    captions = {paths[row.names[0]]: row.caption for row in found}
    files = tuple(str(sample_dir / "Images" / name) for name in captions)
    out = tmp_path / "captions.jsonl"
    batch_caption(BatchCaptionOptions(paths=files, model=str(model), output=out, num_workers=1, generation=generation))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    ours = [row["caption"] for row in rows]
    assert ours == [captions[name] for name in sorted(captions)]
    assert len(pixels) == len(captions) == len(set(pixels))
    assert sorted(pixels) == sorted(evaluated)

    stock, words = VisionEncoderDecoderModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    images = [Image.open(path) for path in sorted(files)]
    theirs = AutoImageProcessor.from_pretrained(model, backend="pil")(images, return_tensors="pt")["pixel_values"]
    tokens = stock.generate(theirs, num_beams=2, max_length=12, length_penalty=2.0, no_repeat_ngram_size=3)
    assert ours == [text.strip() for text in words.batch_decode(tokens, skip_special_tokens=True)]


def test_a_crop_shows_what_lies_outside_the_centre() -> None:
    pixels = torch.full((1, 3, STORED, STORED), 255, dtype=torch.uint8)
    centre(pixels, SEEN, SEEN)[:] = 0
    light = replace(STRENGTHS["light"], degrees=0, colour=0)
    with_margin = Augmentation(light, 0, (STORED, STORED), (SEEN, SEEN))
    drawn = torch.from_numpy(np.stack([with_margin.draw(0, i) for i in range(50)]))
    shown = augmented(pixels.expand(50, -1, -1, -1), drawn, (SEEN, SEEN)).amax((1, 2, 3))
    assert (shown > 250).sum() > 40


def test_the_margin_is_part_of_what_a_cache_is(sample_dir: Path, margin_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    shutil.copytree(margin_dir, out)
    assert "up to date" in preprocess(options(sample_dir, out)).text
    keys = {json.loads((out / "manifest.json").read_text())["options"]["pixel_margin"]}
    preprocess(options(sample_dir, out, pixel_margin=0))
    keys.add(json.loads((out / "manifest.json").read_text())["options"].get("pixel_margin"))
    assert keys == {MARGIN, None}  # as caches were before there was this option
    assert open_cache(out).shape == (3, SEEN, SEEN)
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["pixels"]["crop"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert open_cache(out).seen == (SEEN, SEEN)


def test_a_processor_that_can_not_crop_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ViTImageProcessorPil().save_pretrained(tmp_path / "image_processor")
    monkeypatch.setattr(ViTImageProcessorPil, "center_crop", lambda self, image, size: image)
    with pytest.raises(ModelError, match="--pixel-margin 16: ViTImageProcessorPil does not crop what it has resized"):
        processors.enlarge_image_processor(tmp_path, MARGIN)


@pytest.mark.parametrize(("margin", "message"), [(7, "must be even"), (-2, "must be at least 0")])
def test_values_that_no_margin_can_have(margin: int, message: str) -> None:
    with pytest.raises(InputError, match=f"--pixel-margin {margin}: {message}"):
        PreprocessOptions(pixel_margin=margin)
