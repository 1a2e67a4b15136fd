"""Captioners of other makes against their own documented use, and the warm API against the command."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import MAKES, make
from PIL import Image, ImageFilter
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    VisionEncoderDecoderModel,
)
from transformers.models.donut.image_processing_pil_donut import DonutImageProcessorPil

from toolkit.captioning.attention import Attention
from toolkit.captioning.captioner import Captioner, load_captioner
from toolkit.captioning.pipeline import model_fingerprint
from toolkit.commands.batch_caption import batch_caption
from toolkit.data.images import read_image
from toolkit.data.pixels import PixelTransform, ProcessorTransform, transform_of
from toolkit.errors import InputError, ModelError
from toolkit.options import BatchCaptionOptions, GenerationOptions
from toolkit.records import CaptionResult

OPTIONS = [
    GenerationOptions(num_beams=3, max_length=12),
    GenerationOptions(num_beams=3, max_length=12, length_penalty=0.5, num_captions=2, no_repeat_ngram_size=2),
    GenerationOptions(num_beams=1, max_length=12, no_repeat_ngram_size=0),
    GenerationOptions(),
]


@pytest.fixture(scope="module", params=list(MAKES))
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(request.param, tmp_path_factory.mktemp("foreign") / request.param)


@pytest.fixture(scope="module")
def paths(sample_dir: Path) -> list[Path]:
    return sorted((sample_dir / "Images").iterdir())[:5]


@pytest.mark.parametrize("options", OPTIONS, ids=["beams", "penalty", "greedy", "its own"])
def test_captions_and_scores_of_other_makes(foreign: Path, paths: list[Path], options: GenerationOptions) -> None:
    found = load_captioner(foreign, "cpu").caption(paths, options, batch_size=2)
    # as the model's own page says: the processor, generate, decode
    processor = AutoProcessor.from_pretrained(foreign, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(foreign).eval()
    inputs = processor(images=[read_image(path) for path in paths], return_tensors="pt")
    n, settings = options.num_captions or 1, options.given()
    if options.max_length is not None:  # which counts the image's places in BLIP-2's generate
        settings["max_new_tokens"] = settings.pop("max_length") - 1
    with torch.no_grad():
        sequences = model.generate(**inputs, **settings)
    texts = [text.strip() for text in processor.batch_decode(sequences, skip_special_tokens=True)]
    assert [text for result in found for text in result.captions] == texts
    assert len({result.score for result in found}) == len(found)  # each picture has its own
    for i, result in enumerate(found):
        score, ended = forced(model, inputs["pixel_values"][i : i + 1], sequences[i * n])
        assert result.score == pytest.approx(score, abs=1e-4)
        assert result.ended == ended
        assert (result.image, result.width, result.height) == (str(paths[i]), *read_image(paths[i]).size)


def forced(model: torch.nn.Module, pixels: torch.Tensor, row: torch.Tensor) -> tuple[float, bool]:
    """Mean log-probability of the tokens of a caption in one forward pass, and whether it ends."""
    kind = model.config.model_type
    prompt = 5 if kind == "blip-2" else 1
    eos = {"blip": 3, "git": 3, "blip-2": 1}[kind]
    places = (row[prompt:] == eos).nonzero()
    row = row[: prompt + int(places[0]) + 1] if len(places) else row
    with torch.no_grad():
        logits = model(pixel_values=pixels, input_ids=row[None]).logits[0]
    logits = logits[-len(row) :]  # GIT gives the image's places, too
    chosen = logits[prompt - 1 : -1].log_softmax(-1).gather(1, row[prompt:, None])
    return chosen.mean().item(), bool(len(places))


def test_sampling_is_seeded(foreign: Path, paths: list[Path]) -> None:
    check_sampling(load_captioner(foreign, "cpu"), paths)


def test_sampling_of_ours_is_seeded(model_dir: Path, paths: list[Path]) -> None:
    check_sampling(load_captioner(model_dir, "cpu"), paths)


def check_sampling(captioner: Captioner, paths: list[Path]) -> None:
    options = GenerationOptions(sample=True, num_captions=2, max_length=10, seed=1)  # four beams, which sampling leaves
    first = captioner.caption(paths, options)
    for one, other in zip(first, captioner.caption(paths, options, batch_size=2), strict=True):  # whatever is beside it
        assert replace(one, score=None) == replace(other, score=None)
        assert one.score == pytest.approx(other.score, abs=2e-4)  # sums in another order round otherwise
    assert first != captioner.caption(paths, replace(options, seed=2))
    assert {len(result.captions) for result in first} == {2}


def test_batch_caption_takes_other_makes(foreign: Path, paths: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    batch_caption(
        BatchCaptionOptions(
            paths=tuple(map(str, paths)),
            model=str(foreign),
            output=output,
            generation=GenerationOptions(num_beams=3, max_length=12),
            device="cpu",
        )
    )
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    found = load_captioner(foreign, "cpu").caption(paths, OPTIONS[0])
    assert [row["caption"] for row in rows] == [result.caption for result in found]


# ---- the warm API ---------------------------------------------------------------------------------------------------


def test_any_form_of_a_picture_gives_the_same(model_dir: Path, paths: list[Path], tmp_path: Path) -> None:
    captioner = load_captioner(model_dir, "cpu")
    options = GenerationOptions(max_length=16)
    whole = captioner.caption(paths, options)
    output = tmp_path / "captions.jsonl"
    batch_caption(
        BatchCaptionOptions(
            paths=tuple(map(str, paths)),
            model=str(model_dir),
            output=output,
            generation=GenerationOptions(max_length=16),
            device="cpu",
        )
    )
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [{**result.to_row(), "image": Path(result.image).name} for result in whole] == rows
    assert [result.image for result in whole] == [str(path) for path in paths]
    images = [Image.open(path) for path in paths]
    for others in (
        [str(path) for path in paths],
        [path.read_bytes() for path in paths],
        images,
        [np.asarray(image) for image in images],
    ):
        again = captioner.caption(others, options, batch_size=2)
        assert [result.caption for result in again] == [result.caption for result in whole]
        assert [result.score for result in again] == pytest.approx([result.score for result in whole], abs=1e-5)
    assert [result.image for result in again] == ["0", "1", "2", "3", "4"]


def test_a_pillow_image_is_seen_as_its_file_is(tmp_path: Path) -> None:
    """Turned upright, laid on white: the one policy."""
    grey = Image.radial_gradient("L").resize((50, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.save(tmp_path / "turned.png", exif=exif)
    Image.merge("LA", (grey, grey.filter(ImageFilter.BoxBlur(2)))).save(tmp_path / "clear.png")
    for name in ("turned.png", "clear.png"):
        with Image.open(tmp_path / name) as image:
            assert read_image(image).tobytes() == read_image(tmp_path / name).tobytes()


def test_bad_pictures_and_mistakes(model_dir: Path, paths: list[Path], tmp_path: Path) -> None:
    captioner = load_captioner(str(model_dir), "cpu")
    data = paths[0].read_bytes()
    cut = Image.open(io.BytesIO(data[: len(data) // 2]))
    found = captioner.caption([b"text", tmp_path / "gone.jpg", paths[0], b"", cut], GenerationOptions(max_length=8))
    assert [result.error for result in found] == ["not an image", "missing", None, "empty file", "truncated"]
    assert found[0] == CaptionResult("0", error="not an image")
    assert found[2].caption
    assert captioner.caption([]) == []
    for wrong, reason in (
        ([np.zeros((3, 8, 8), np.uint8)], "an array of uint8"),
        ([np.zeros((8, 8, 3))], "an array of float64"),
        ([np.zeros((0, 8, 3), np.uint8)], r"an array of uint8 \(0, 8, 3\) is not an image"),
        ([np.zeros((8, 0), np.uint8)], r"an array of uint8 \(8, 0\) is not an image"),
        ([7], "int is not an image"),
        (paths[0], "a list of images"),
    ):
        with pytest.raises(InputError, match=reason):
            captioner.caption(wrong)
    for given, reason in (
        ({"batch_size": 0}, r"caption\(batch_size=0\): must be a whole number of at least 1"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"options": {"num_beams": 1}}, "its options as GenerationOptions, not as a dict"),
    ):
        with pytest.raises(InputError, match=reason):
            captioner.caption([paths[0]], **given)
    blank = Image.new("RGB", (0, 5))
    assert captioner.caption([blank])[0].error == "no pixels: 0x5"


def test_models_that_cannot_caption(tmp_path: Path) -> None:
    for kind in ("clip", "gpt2"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ModelError, match=f"of type {kind}, not a .*vision-encoder-decoder or blip or git"):
            load_captioner(tmp_path / kind)


# ---- image processors -----------------------------------------------------------------------------------------------


class Vignette:
    """An image processor with a step of its own."""

    def __init__(self, sizes: tuple[int, ...] = (16,)) -> None:
        self.sizes = sizes

    def __call__(self, image: Image.Image, **_: object) -> dict[str, np.ndarray]:
        side = self.sizes[image.width % len(self.sizes)]
        return {"pixel_values": np.asarray(image.convert("L").resize((side, side)), dtype=np.float64)[None, None] / 7}


def test_a_processor_with_steps_of_its_own() -> None:
    settings = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    image = Image.radial_gradient("L").convert("RGB")
    transform = transform_of(Vignette(), settings, "--model m")
    assert isinstance(transform, ProcessorTransform)
    pixels = transform(image)
    assert (pixels.shape, pixels.dtype) == ((1, 16, 16), np.float32)
    assert np.array_equal(pixels, Vignette()(image)["pixel_values"][0].astype(np.float32))
    with pytest.raises(ModelError, match="--model m: its image processor gives pixels of differing shapes"):
        transform_of(Vignette((16, 24)), settings, "--model m")


def test_an_encoder_decoder_with_a_processor_of_its_own(model_dir: Path, paths: list[Path], tmp_path: Path) -> None:
    """Donut's pads and turns: toolkit leaves it to do so, and its own decoder takes what comes of it."""
    shutil.copytree(model_dir, tmp_path / "m", ignore=shutil.ignore_patterns("checkpoints"))
    DonutImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "m")
    captioner = load_captioner(tmp_path / "m", "cpu")
    assert isinstance(captioner.transform, ProcessorTransform)
    found = captioner.caption(paths, OPTIONS[0])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "m", backend="pil")
    pixels = processor([read_image(path) for path in paths], return_tensors="pt")["pixel_values"]
    sequences = VisionEncoderDecoderModel.from_pretrained(tmp_path / "m").generate(
        pixels, num_beams=3, length_penalty=2.0, no_repeat_ngram_size=3, early_stopping=False, max_length=12
    )
    texts = AutoTokenizer.from_pretrained(tmp_path / "m").batch_decode(sequences, skip_special_tokens=True)
    assert [result.caption for result in found] == [text.strip() for text in texts]
    with pytest.raises(ModelError, match="its image processor does not say which part of an image"):
        Attention(captioner, "--model m")


def test_ours_where_it_gives_the_same(foreign: Path, paths: list[Path]) -> None:
    captioner = load_captioner(foreign, "cpu")
    assert isinstance(captioner.transform, PixelTransform)
    image = read_image(paths[0])
    theirs = captioner.image_processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(captioner.normalizer(torch.tensor(captioner.transform(image))), theirs)
    # the processor itself, where it has to be, gives the same captions
    exact = replace(captioner, transform=ProcessorTransform(captioner.image_processor), normalizer=torch.nn.Identity())
    assert exact.caption(paths, OPTIONS[0]) == captioner.caption(paths, OPTIONS[0])
    pixels = torch.from_numpy(np.stack([exact.transform(image)]))
    assert exact.generate(pixels, OPTIONS[0])[0].captions[0] == captioner.caption([image], OPTIONS[0])[0].caption


def test_an_encoder_that_was_trained_to_classify(model_dir: Path) -> None:
    """Its config names its classes by number."""
    captioner = load_captioner(model_dir, "cpu")
    before = model_fingerprint(captioner, GenerationOptions())
    captioner.model.config.encoder.id2label = {0: "tench", 1: "goldfish"}
    assert model_fingerprint(captioner, GenerationOptions()) != before
