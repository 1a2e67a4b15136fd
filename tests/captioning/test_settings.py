"""The model's own settings, options over them, and where each came from; captions against stock `generate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import MAKES, make
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from toolkit.captioning.captioner import load_captioner
from toolkit.captioning.pipeline import _plain
from toolkit.captioning.settings import settled
from toolkit.commands.batch_caption import batch_caption
from toolkit.commands.caption import caption
from toolkit.commands.evaluate import evaluate
from toolkit.data.images import read_image
from toolkit.errors import InputError
from toolkit.options import BatchCaptionOptions, CaptionOptions, EvaluateOptions, FinetuneOptions, GenerationOptions
from toolkit.options.fields import from_flat, to_json

OWN: dict[str, Any] = {
    "num_beams": 1,
    "max_length": 9,
    "repetition_penalty": 1.7,
    "min_length": 6,
    "no_repeat_ngram_size": 2,
}


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Special tokens stay."""
    path = folder / "generation_config.json"
    ids = {name: value for name, value in json.loads(path.read_text()).items() if name.endswith("_token_id")}
    path.write_text(json.dumps({**ids, **settings}))


@pytest.fixture(scope="module")
def greedy(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings") / "model"
    shutil.copytree(model_dir, folder, ignore=shutil.ignore_patterns("checkpoints"))
    write_settings(folder, OWN)
    return folder


@pytest.fixture(scope="module")
def paths(sample_dir: Path) -> list[Path]:
    return sorted((sample_dir / "Images").iterdir())[:4]


def stock_captions(folder: Path, paths: list[Path], **settings: Any) -> list[str]:
    """As somebody without toolkit gets them."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor([read_image(path) for path in paths], return_tensors="pt").pixel_values
    with torch.no_grad():
        tokens = model.generate(pixel_values=pixels, **settings)
    return [t.strip() for t in AutoTokenizer.from_pretrained(folder).batch_decode(tokens, skip_special_tokens=True)]


def test_every_command_begins_with_the_models_own(
    greedy: Path, model_dir: Path, cache_dir: Path, paths: list[Path], tmp_path: Path
) -> None:
    wanted = stock_captions(greedy, paths)
    assert wanted != stock_captions(model_dir, paths)  # with other settings, of the same weights
    output = tmp_path / "out.jsonl"
    found = batch_caption(BatchCaptionOptions(paths=tuple(map(str, paths)), model=str(greedy), output=output))
    assert [json.loads(line)["caption"] for line in output.read_text().splitlines()] == wanted
    assert found.values["settings"] == {name: {"value": value, "from": "model"} for name, value in OWN.items()}
    assert "decoding with num_beams 1, max_length 9, no_repeat_ngram_size 2" in found.text
    one = caption(CaptionOptions(images=tuple(map(str, paths)), model=str(greedy)))
    assert [row["caption"] for row in one.values["images"]] == wanted
    assert one.values["settings"] == found.values["settings"]
    assert [result.caption for result in load_captioner(greedy, "cpu").caption(paths)] == wanted

    judged = evaluate(EvaluateOptions(model=str(greedy), references=cache_dir))
    assert judged.values["settings"] == found.values["settings"]
    assert (
        judged.values["metrics"]
        != evaluate(EvaluateOptions(model=str(model_dir), references=cache_dir)).values["metrics"]
    )


def test_an_option_overrides_and_nothing_else(greedy: Path, paths: list[Path]) -> None:
    captioner = load_captioner(greedy, "cpu")
    options = GenerationOptions(num_beams=3, repetition_penalty=1.0)
    assert [r.caption for r in captioner.caption(paths, options)] == stock_captions(
        greedy, paths, num_beams=3, repetition_penalty=1.0
    )
    told = captioner.settings(options).to_json()
    assert {name: (said["value"], said["from"]) for name, said in told.items()} == {
        "num_beams": (3, "option"), "max_length": (9, "model"), "no_repeat_ngram_size": (2, "model"),
        "length_penalty": (1.0, "default"), "early_stopping": (False, "default"), "min_length": (6, "model"),
    }  # fmt: skip


def test_a_length_replaces_the_other_way_to_say_it(model_dir: Path) -> None:
    captioner = load_captioner(model_dir, "cpu")
    captioner.model.generation_config = GenerationConfig(
        max_new_tokens=4, min_new_tokens=2, eos_token_id=0, pad_token_id=0
    )
    assert captioner.settings(GenerationOptions()).to_json()["max_new_tokens"] == {"value": 4, "from": "model"}
    config = captioner.settings(GenerationOptions(max_length=12, min_length=6)).config
    assert (config.max_length, config.max_new_tokens, config.min_length, config.min_new_tokens) == (12, None, 6, None)
    captioner.model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    assert captioner.settings(GenerationOptions()).to_json()["max_length"] == {"value": 21, "from": "default"}


def test_a_model_that_samples(model_dir: Path, paths: list[Path]) -> None:
    captioner = load_captioner(model_dir, "cpu")
    captioner.model.generation_config.update(do_sample=True, num_beams=1, top_k=7)
    first = captioner.caption(paths)
    assert first == captioner.caption(paths, batch_size=4)
    assert [r.caption for r in first] != [r.caption for r in captioner.caption(paths, GenerationOptions(seed=7))]
    told = captioner.settings(GenerationOptions(temperature=0.5)).to_json()
    assert told["do_sample"] == {"value": True, "from": "model"}
    assert told["top_k"] == {"value": 7, "from": "model"}
    assert told["temperature"] == {"value": 0.5, "from": "option"}
    assert told["seed"] == {"value": 42, "from": "default"}
    assert not captioner.settings(GenerationOptions(sample=False)).config.do_sample


@pytest.mark.parametrize("kind", list(MAKES))
def test_other_makes_with_settings_of_their_own(kind: str, paths: list[Path], tmp_path: Path) -> None:
    folder = make(kind, tmp_path / kind)
    places = {"blip-2": 4}.get(kind, 0)  # which its generate counts
    write_settings(
        folder, {"num_beams": 3, "max_length": 9 + places, "min_length": 4 + places, "repetition_penalty": 1.4}
    )
    own = GenerationConfig.from_pretrained(folder)
    wanted = stock_captions(folder, paths, generation_config=own)
    captioner = load_captioner(folder, "cpu")
    assert [result.caption for result in captioner.caption(paths, batch_size=3)] == wanted
    assert captioner.settings(GenerationOptions()).to_json()["max_length"] == {"value": 9, "from": "model"}


@pytest.mark.parametrize(("options", "message"), [
    ({"length_penalty": 1.5}, "--length-penalty 1.5: has no effect, because there is one beam"),
    ({"num_captions": 2}, "--num-captions 2: needs as many beams (the model's folder has 1); add --num-beams 2"),
    ({"min_length": 10}, "--min-length 10: is above the max_length 9"),
    ({"start_with": "a small red small red small red small"}, "nothing could follow; use a longer --max-length"),
])  # fmt: skip
def test_options_that_the_models_settings_rule_out(
    greedy: Path, paths: list[Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=r"^--") as caught:
        load_captioner(greedy, "cpu").caption(paths, GenerationOptions(**options))
    assert message in str(caught.value)
    given = {"paths": tuple(map(str, paths)), "model": str(greedy), "output": tmp_path / "out.jsonl", **options}
    with pytest.raises(InputError) as again:
        batch_caption(from_flat(BatchCaptionOptions, given))
    assert str(again.value) == str(caught.value)
    assert list(tmp_path.iterdir()) == []


# ---- what stays -----------------------------------------------------------------------------------------------------


def test_settings_that_journals_are_found_by(model_dir: Path) -> None:
    """What was hashed for a caption before options could be left to the model's folder is hashed now, where it is the
    same way of decoding."""
    captioner = load_captioner(model_dir, "cpu")
    eos = captioner.tokenizer.eos_token_id
    ids = {"decoder_start_token_id": eos, "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos}
    beams = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": False, "max_length": 50, "no_repeat_ngram_size": 3,
             "num_return_sequences": 1, "do_sample": False, "top_k": 50, **ids}  # fmt: skip
    sampling = {**beams, "num_beams": 1, "do_sample": True, "top_p": 1.0, "temperature": 1.0}
    for options, wanted in (
        (GenerationOptions(), beams),
        (
            GenerationOptions(num_beams=4, max_length=50, length_penalty=2, no_repeat_ngram_size=3, num_captions=1),
            beams,
        ),
        (GenerationOptions(num_beams=1), {**beams, "num_beams": 1}),
        (
            GenerationOptions(early_stopping="never", max_length=12),
            {**beams, "early_stopping": "never", "max_length": 12},
        ),
        (GenerationOptions(sample=True), sampling),
        (GenerationOptions(sample=True, top_k=0, temperature=0.5), {**sampling, "top_k": 0, "temperature": 0.5}),
    ):
        config = settled(captioner.model, captioner.tokenizer, options).config
        assert json.dumps(_plain(config.to_diff_dict()), sort_keys=True) == json.dumps(wanted, sort_keys=True)


def test_what_finetune_writes_stays() -> None:
    plain = {"num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 2.0, "max_length": 50}
    for given, wanted in (
        (FinetuneOptions(), plain),
        (FinetuneOptions(generation=GenerationOptions(num_beams=1)), {**plain, "num_beams": 1}),
        (from_flat(FinetuneOptions, {"max_length": 24}), {**plain, "max_length": 24}),
    ):
        assert {name: to_json(given)[name] for name in plain} == wanted
