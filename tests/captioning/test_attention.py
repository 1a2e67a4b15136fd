"""Heat maps against the model's own attention, worked out another way; grids of encoders; the option."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from foreign import make
from transformers import AutoTokenizer, BertConfig, GPT2Config, SwinConfig, ViTConfig
from transformers import VisionEncoderDecoderConfig as Config
from transformers import VisionEncoderDecoderModel as Model

from toolkit.captioning.attention import Attention, Grid, patch_grid, word_spans
from toolkit.captioning.captioner import Captioner, load_captioner
from toolkit.commands.batch_caption import batch_caption
from toolkit.data.images import read_image
from toolkit.data.pixels import PixelTransform
from toolkit.errors import InputError, ModelError
from toolkit.models.loading import save_captioner
from toolkit.models.special_tokens import settle_special_tokens, special_tokens_of
from toolkit.options import BatchCaptionOptions, GenerationOptions
from toolkit.records import HeatMaps

CAPTIONS = ["a red circle left of  a blue square.", "zwölf Äpfel 🐕", "one"]


@pytest.fixture(scope="module")
def captioner(model_dir: Path) -> Captioner:
    return load_captioner(model_dir, "cpu")


def explained(captioner: Captioner, paths: list[Path], captions: list[str]) -> list[HeatMaps | None]:
    attention = Attention(captioner, "--model m")
    return attention.explain([attention.prepare(read_image(path)) for path in paths], captions)


def test_maps_are_the_models_attention(captioner: Captioner, model_dir: Path, sample_dir: Path) -> None:
    """Against the model loaded with eager attention, stepping token by token with a cache as generate does."""
    paths = sorted((sample_dir / "Images").iterdir())[:3]
    found = explained(captioner, paths, CAPTIONS)
    model = Model.from_pretrained(model_dir, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    for path, caption, heat in zip(paths, CAPTIONS, found, strict=True):
        assert heat is not None
        assert [caption[a:b] for a, b in heat.words] == caption.split()
        pixels = captioner.image_processor(read_image(path), return_tensors="pt")["pixel_values"]
        states = model.encoder(pixels, return_dict=True)
        ids = tokenizer(caption, add_special_tokens=False)["input_ids"]
        cache, steps, last = None, [], model.generation_config.decoder_start_token_id
        for token in ids:
            with torch.no_grad():
                output = model(
                    encoder_outputs=states, decoder_input_ids=torch.tensor([[last]]), past_key_values=cache,
                    use_cache=True, output_attentions=True,
                )  # fmt: skip
            cache, last = output.past_key_values, token
            heads = torch.cat([layer[0, :, 0] for layer in output.cross_attentions])  # (layers x heads, 17)
            steps.append(heads.mean(0)[1:].numpy())  # without the class token
        # which tokens make a word: those that the text has been grown by when the word is whole
        text = [tokenizer.decode(ids[: n + 1]) for n in range(len(ids))]
        place = 0
        for word, values in zip(caption.split(), heat.maps, strict=True):
            mine = []
            while not mine or not text[place - 1].endswith(word):
                if tokenizer.decode(ids[place]).strip():  # a space of its own belongs to no word
                    mine.append(steps[place])
                place += 1
            mean = np.mean(mine, axis=0)
            expected = (mean - mean.min()) / (mean.max() - mean.min()) * 255
            assert values.shape == (4, 4)
            assert np.abs(values.reshape(-1) - expected).max() < 1.0
            assert (values.min(), values.max()) == (0, 255)


def test_a_batch_changes_nothing(captioner: Captioner, sample_dir: Path) -> None:
    paths = sorted((sample_dir / "Images").iterdir())[:3]
    together = explained(captioner, paths, [*CAPTIONS[:2], ""])
    assert together[2] is None
    for path, caption, heat in zip(paths, CAPTIONS[:2], together, strict=False):
        (alone,) = explained(captioner, [path], [caption])
        assert alone is not None
        assert heat is not None
        assert alone.words == heat.words
        assert np.abs(alone.maps.astype(int) - heat.maps).max() <= 1


def test_the_model_is_left_as_it_was(captioner: Captioner, sample_dir: Path) -> None:
    configs = [part.config for part in captioner.model.modules() if hasattr(part, "config")]
    before = [config._attn_implementation for config in configs]
    explained(captioner, sorted((sample_dir / "Images").iterdir())[:1], ["a dog"])
    assert [config._attn_implementation for config in configs] == before
    assert "eager" not in before


def test_words() -> None:
    assert word_spans(" a  dog\nruns. ") == [(1, 2), (4, 7), (8, 13)]
    assert word_spans("") == []


def test_grids() -> None:
    vit = ViTConfig(patch_size=16)
    assert patch_grid(vit, 224, 224, 197) == Grid(14, 14, 1)
    assert patch_grid(vit, 224, 448, 393) == Grid(14, 28, 1)
    assert patch_grid(SimpleNamespace(patch_size=14), 224, 224, 256) == Grid(16, 16, 0)  # SigLIP has no class token
    assert patch_grid(SimpleNamespace(patch_size=(14, 14)), 224, 224, 261) == Grid(16, 16, 5)  # DINOv2 with registers
    assert patch_grid(SwinConfig(), 224, 224, 49) == Grid(7, 7, 0)
    assert patch_grid(vit, 224, 224, 64) is None
    assert patch_grid(SimpleNamespace(hidden_size=8), 224, 224, 49) is None


@pytest.mark.parametrize(
    ("transform", "size", "box"),
    [
        ({"size": (224, 224)}, (640, 480), (0, 0, 1, 1)),
        ({"shortest_edge": 224, "crop": (224, 224)}, (448, 224), (0.25, 0, 0.5, 1)),
        ({"shortest_edge": 256, "crop": (224, 224)}, (100, 100), (0.0625, 0.0625, 0.875, 0.875)),
        ({"crop": (64, 64)}, (32, 128), (-0.5, 0.25, 2, 0.5)),
    ],
)
def test_what_of_an_image_the_model_sees(transform: dict, size: tuple[int, int], box: tuple[float, ...]) -> None:
    rest = {"size": None, "shortest_edge": None, "crop": None, "resample": 2, "rescale_factor": 1 / 255}
    assert PixelTransform(**{**rest, **transform, "mean": (0.5,) * 3, "std": (0.5,) * 3}).box(*size) == box


def other_model(directory: Path, captioner: Captioner, encoder: object, decoder: object) -> Captioner:
    """A random captioner of other parts with the tokenizer and image processor of `captioner`."""
    torch.manual_seed(0)
    model = Model(config=Config.from_encoder_decoder_configs(encoder, decoder))
    settle_special_tokens(model, special_tokens_of(captioner.tokenizer))
    save_captioner(model, captioner.tokenizer, captioner.image_processor, model.generation_config, directory)
    return load_captioner(directory, "cpu")


def test_other_parts(captioner: Captioner, sample_dir: Path, tmp_path: Path) -> None:
    """Swin, whose grid has no class token, and BERT, which words attention otherwise; sizes differ, too."""
    encoder = SwinConfig(image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    decoder = BertConfig(
        vocab_size=len(captioner.tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    paths = sorted((sample_dir / "Images").iterdir())[:2]
    (first, second) = explained(other_model(tmp_path / "m", captioner, encoder, decoder), paths, CAPTIONS[:2])
    assert first is not None
    assert second is not None
    assert first.maps.shape == (8, 8, 8)
    assert second.maps.shape == (3, 8, 8)
    assert len({values.tobytes() for values in first.maps}) == 8


def test_what_can_not_be_shown(captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ModelError, match=re.escape("--model m can't show where it looks, because a model of type blip has no")
    ):
        Attention(load_captioner(make("blip", tmp_path / "blip"), "cpu"), "--model m")
    decoder = GPT2Config(vocab_size=len(captioner.tokenizer), n_embd=32, n_layer=1, n_head=2, add_cross_attention=True)
    odd = other_model(tmp_path / "odd", captioner, captioner.model.config.encoder, decoder)
    odd.model.config.encoder.patch_size = 32
    with pytest.raises(
        ModelError, match="17 tokens are not a grid of patches over 64 x 64 pixels; leave --attention out"
    ):
        Attention(odd, "--model m")


def test_batch_caption_adds_them(model_dir: Path, sample_dir: Path, tmp_path: Path) -> None:
    paths = [str(path) for path in sorted((sample_dir / "Images").iterdir())[:4]]
    (tmp_path / "bad.jpg").write_text("no picture")
    options = BatchCaptionOptions(
        paths=(*paths, str(tmp_path / "bad.jpg")), model=str(model_dir), output=tmp_path / "rows.jsonl", generation=GenerationOptions(max_length=16),
        gallery=tmp_path / "page.html", attention=True, device="cpu",
    )  # fmt: skip
    for _ in range(2):  # a second run captions nothing, and writes the page again
        batch_caption(options)
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        cards = json.loads(re.search('id="cards">(.*?)</script>', text, re.DOTALL)[1])[:-1]  # type: ignore[index]
        assert len(cards) == 5
        for card in cards:
            assert ("heat" in card) == ("error" not in card)
            if "heat" in card:
                assert [card["caption"][a:b] for a, b in card["heat"]["words"]] == card["caption"].split()
                assert card["heat"]["grid"] == [4, 4]
        (tmp_path / "page.html").unlink()
    with pytest.raises(InputError, match="--attention"):
        BatchCaptionOptions(paths=("a",), attention=True)
