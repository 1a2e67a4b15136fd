"""Captioners that are told what to do, against their documented use: processor and `generate`, one image at a time."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_models import IDEFICS_CHAT, MADE, QWEN_CHAT, make_chat
from foreign import make
from PIL import Image
from tokenizers import AddedToken
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from toolkit.captioning.captioner import load_captioner
from toolkit.captioning.pipeline import model_fingerprint
from toolkit.captioning.prompted import PromptedCaptioner, collate
from toolkit.captioning.prompts import Asked
from toolkit.commands.batch_caption import batch_caption
from toolkit.data.images import read_image
from toolkit.errors import InputError, ModelError, RunError
from toolkit.options import BatchCaptionOptions, GenerationOptions, PromptOptions
from toolkit.options.fields import from_flat

QUICK = ("llava", "qwen2_vl", "florence2")  # of the others the tests are slow
KINDS = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in (*MADE, "blip-2")]
WITH_BEAMS = ["llava", *(pytest.param(kind, marks=pytest.mark.slow) for kind in (*MADE, "blip-2") if kind != "llava")]
PROMPTS = {"florence2": "<CAPTION>", "blip-2": "Question: what? Answer:", "blip-2-t5": "Question: what? Answer:"}
SHORT = GenerationOptions(num_beams=1, max_new_tokens=8)


@pytest.fixture(scope="module")
def made(made_once: Callable) -> Callable[[str], Path]:
    def model(kind: str) -> Path:
        folder: Path = made_once(f"chat/{kind}", lambda path: (make if kind == "blip-2" else make_chat)(kind, path))
        return folder

    return model


@pytest.fixture(scope="module")
def photos(made_once: Callable, sample_dir: Path) -> list[Path]:
    """Eight pictures, wide and tall."""
    sizes = [(64, 48), (48, 64), (90, 30), (40, 40), (33, 70), (64, 64), (120, 50), (50, 41)]
    pictures = sorted((sample_dir / "Images").iterdir())[:8]

    def write(folder: Path) -> None:
        folder.mkdir()
        for i, (size, picture) in enumerate(zip(sizes, pictures, strict=True)):
            read_image(picture).resize(size).save(folder / f"{i}.png")

    return sorted(made_once("chat-photos", write).iterdir())


def asked_of(kind: str, image: Path) -> str:
    """Of another length for each image, except where the processor takes only its own words."""
    prompt = PROMPTS.get(kind, "Describe {name}, and again " + "{name}" * 3)
    return prompt.replace("{name}", image.stem * (1 + int(image.stem) % 3))


def naive_inputs(kind: str, folder: Path, image: Image.Image, prompt: str) -> dict[str, Any]:
    """The inputs of one image as the model's own page has it; without a video half as that puts them together."""
    message = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
    if kind in ("smolvlm", "qwen2_vl"):
        words = AutoTokenizer.from_pretrained(folder)
        images = AutoImageProcessor.from_pretrained(folder, backend="pil")
        template = IDEFICS_CHAT if kind == "smolvlm" else QWEN_CHAT
        text = words.apply_chat_template(message, chat_template=template, add_generation_prompt=True, tokenize=False)
        if kind == "smolvlm":
            seen = images([[image]], return_row_col_info=True, return_tensors="pt")
            rows, columns = seen.pop("rows"), seen.pop("cols")
            tags = ("<fake_token_around_image>", "<image>", "<global-img>")
            text = text.replace("<image>", get_image_prompt_string(rows[0][0], columns[0][0], 4, *tags))
            return {**words(text, return_tensors="pt"), **seen}
        seen = images([image], return_tensors="pt")
        text = text.replace("<|image_pad|>", "<|image_pad|>" * (int(seen["image_grid_thw"].prod()) // 4))
        ids = words(text, return_tensors="pt")
        places = (ids["input_ids"] == words.convert_tokens_to_ids("<|image_pad|>")).long()
        return {**ids, **seen, "mm_token_type_ids": places}
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    if kind in ("llava", "idefics3"):
        return dict(
            processor.apply_chat_template(
                message, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        )
    if kind == "blip-2":
        processor.image_token = AddedToken(
            "<image>", special=True
        )  # its tokenizer names it, which its code does not expect
    text = f"<image>{prompt}" if kind == "paligemma" else prompt
    return dict(processor(images=image, text=text, return_tensors="pt"))


def naive(
    kind: str, folder: Path, images: list[Path], **settings: Any
) -> list[tuple[str, torch.Tensor, dict[str, Any]]]:
    """Caption, new tokens and inputs of each image."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    words, found = AutoTokenizer.from_pretrained(folder), []
    for path in images:
        inputs = naive_inputs(kind, folder, read_image(path), asked_of(kind, path))
        with torch.no_grad():
            row = model.generate(**inputs, **settings)[0]
        row = row[1:] if kind in ("florence2", "blip-2-t5") else row[inputs["input_ids"].shape[1] :]
        found.append((words.decode(row, skip_special_tokens=True).strip(), row, inputs))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_those_of_the_documented_use(kind: str, made: Callable[[str], Path], photos: list[Path]) -> None:
    folder = made(kind)
    captioner = load_captioner(folder, "cpu")
    expected = naive(kind, folder, photos, max_new_tokens=8, num_beams=1)
    assert len({text for text, _, _ in expected}) > 2
    one_by_one = None
    for size in (1, 3, 8):
        # each image has a prompt of its own: the same name in any batch
        prepared = [
            captioner.prepare(
                read_image(path), captioner.prompts(PromptOptions(prompt=asked_of(kind, path)), 42).ask("", {})
            )
            for path in photos
        ]
        found = [one for i in range(0, 8, size) for one in captioner.answer(prepared[i : i + size], SHORT)]
        assert [one.captions[0] for one in found] == [text for text, _, _ in expected]
        one_by_one = one_by_one or found
        assert [one.scores[0] for one in found] == pytest.approx([one.scores[0] for one in one_by_one], abs=1e-4)
        assert [one.ended for one in found] == [one.ended for one in one_by_one]


@pytest.mark.parametrize("kind", WITH_BEAMS)
def test_with_beams(kind: str, made: Callable[[str], Path], photos: list[Path]) -> None:
    settings = {"num_beams": 3, "length_penalty": 0.5, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2}
    expected = naive(kind, made(kind), photos[:3], max_new_tokens=6, **settings)
    captioner = load_captioner(made(kind), "cpu")
    options = GenerationOptions(max_length=7, **settings)
    prepared = [captioner.prepare(read_image(path), Asked(asked_of(kind, path))) for path in photos[:3]]
    assert [one.captions[0] for one in captioner.answer(prepared, options)] == [text for text, _, _ in expected]


@pytest.mark.parametrize(
    "options", [{"num_beams": 3, "max_length": 9}, {"num_beams": 1, "max_length": 9, "min_length": 5}]
)
def test_blip_2_with_an_encoder_decoder_without_a_prompt(
    options: dict[str, Any], made: Callable[[str], Path], photos: list[Path]
) -> None:
    """Nothing of what its decoder writes is cut off as the image's places, and lengths do not count these."""
    folder = made("blip-2-t5")
    found = load_captioner(folder, "cpu").caption(photos, GenerationOptions(**options), batch_size=3)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = processor(images=[read_image(path) for path in photos], return_tensors="pt")
    with torch.no_grad():
        sequences = model.generate(**inputs, **options)
    texts = [text.strip() for text in processor.batch_decode(sequences, skip_special_tokens=True)]
    assert [one.caption for one in found] == texts
    assert len(set(texts)) > 1
    begun = load_captioner(folder, "cpu").caption(photos[:2], GenerationOptions(max_length=9, start_with="a dog"))
    assert all(one.caption is not None and one.caption.startswith("a dog") for one in begun)


# ---- commands -------------------------------------------------------------------------------------------------------


def run(folder: Path, photos: list[Path], output: Path, **given: Any) -> Any:
    given = {
        "prompt": "Describe {name}",
        "num_beams": 1,
        "max_new_tokens": 8,
        "device": "cpu",
        "batch_size": "3",
        **given,
    }
    paths = (str(photos[0].parent),)
    return batch_caption(
        from_flat(BatchCaptionOptions, {"paths": paths, "model": str(folder), "output": output, **given})
    )


@pytest.mark.parametrize("kind", ["llava", pytest.param("florence2", marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    kind: str, made: Callable[[str], Path], photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"prompt": PROMPTS.get(kind, "Describe {name}"), "keep_raw": True}
    summary = run(made(kind), photos, tmp_path / "whole.jsonl", **given)
    assert (summary.exit_code, summary.values["new"]) == (0, 8)
    answer, answered = PromptedCaptioner.answer, list[int]()

    def stops(self: PromptedCaptioner, prepared: Any, options: GenerationOptions) -> Any:
        if answered:
            raise KeyboardInterrupt
        answered.append(len(prepared))
        return answer(self, prepared, options)

    with monkeypatch.context() as patch:
        patch.setattr(PromptedCaptioner, "answer", stops)
        with pytest.raises(KeyboardInterrupt):
            run(made(kind), photos, tmp_path / "parts.jsonl", **given)
    assert answered == [3]
    assert run(made(kind), photos, tmp_path / "parts.jsonl", **given).values["new"] == 5
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert all(row["error"] is None and row["score"] < 0 and row["ended"] in (True, False) for row in rows)
    kept = sqlite3.connect(tmp_path / "whole.jsonl.state").execute("SELECT row FROM captions").fetchall()
    raw = [json.loads(row)["raw"][0] for (row,) in kept]
    assert len(raw) == 8
    assert sum("</s>" in text for text in raw) == sum(row["ended"] for row in rows)
    found = load_captioner(made(kind), "cpu").caption(photos, SHORT, prompting=PromptOptions(prompt=given["prompt"]))
    assert [one.caption for one in found] == [row["caption"] for row in rows]


def test_settings_that_are_told(made: Callable[[str], Path]) -> None:
    captioner = load_captioner(made("llava"), "cpu")
    told = captioner.settings(GenerationOptions()).told
    assert (told["max_new_tokens"].value, told["max_new_tokens"].origin, "max_length" in told) == (20, "default", False)
    config = captioner.settings(GenerationOptions(max_length=9, min_length=4)).config
    assert (config.max_new_tokens, config.max_length, config.min_new_tokens) == (8, None, 3)
    with pytest.raises(InputError, match="--start-with: a model that is told what to do is told this too"):
        captioner.settings(GenerationOptions(start_with="a"))


def test_a_length_of_the_folder_counts_the_prompt(
    made: Callable[[str], Path], photos: list[Path], tmp_path: Path
) -> None:
    """As in `generate`, for each image, whatever is beside it in the batch."""
    folder = tmp_path / "llava"
    shutil.copytree(made("llava"), folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "max_length": 72}))
    images = photos[:4]
    expected = naive("llava", folder, images)
    captioner = load_captioner(folder, "cpu")
    prepared = [captioner.prepare(read_image(path), Asked(asked_of("llava", path))) for path in images]
    assert [one.captions[0] for one in captioner.answer(prepared, GenerationOptions())] == [
        text for text, _, _ in expected
    ]
    with pytest.raises(
        RunError, match=r"--max-new-tokens: the prompt and the image have .* tokens, and the model's folder says"
    ):
        captioner.answer([captioner.prepare(read_image(images[0]), Asked("long " * 99))], GenerationOptions())


def test_sampling_is_seeded_by_image_and_prompt(made: Callable[[str], Path], photos: list[Path]) -> None:
    captioner = load_captioner(made("qwen2_vl"), "cpu")
    options = GenerationOptions(sample=True, max_new_tokens=6, num_captions=2)
    prepared = [captioner.prepare(read_image(path), Asked("Describe it.")) for path in photos[:3]]
    found = captioner.answer(prepared, options)
    assert [one for item in reversed(prepared) for one in captioner.answer([item], options)] == found[::-1]
    assert found != captioner.answer(prepared, replace(options, seed=1))
    assert all(len(set(one.captions)) == 2 for one in found)


def test_system_messages(made: Callable[[str], Path], photos: list[Path]) -> None:
    captioner, image = load_captioner(made("qwen2_vl"), "cpu"), read_image(photos[0])
    asked = Asked("What?", "Be brief.")
    assert "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user" in captioner.tokenizer.decode(
        captioner.prepare(image, asked)["input_ids"][0]
    )
    captioner.prompts(PromptOptions(prompt="What?", system_prompt="Be brief."), 42)
    with pytest.raises(InputError, match="--system-prompt: this paligemma has no chat template"):
        load_captioner(made("paligemma"), "cpu").prompts(PromptOptions(prompt="What?", system_prompt="Be brief."), 42)
    deaf = load_captioner(made("qwen2_vl"), "cpu")
    deaf.processor.chat_template = QWEN_CHAT.replace("{% for m in messages %}", "{% for m in messages[1:] %}")
    with pytest.raises(InputError, match="the chat template of this qwen2_vl takes none"):
        deaf.prompts(PromptOptions(prompt="What?", system_prompt="Be brief."), 42)


def test_prompts_that_are_refused(made: Callable[[str], Path], photos: list[Path], tmp_path: Path) -> None:
    for given, sentence in (
        (
            {"prompt": "<CAPTION> of this"},
            "--prompt <CAPTION> of this: the model's processor can't take it (Task token <CAPTION>",
        ),
        ({"prompt": None}, "--prompt: a model of type florence2 has to be told what to do"),
    ):
        with pytest.raises(InputError) as error:
            run(made("florence2"), photos, tmp_path / "c.jsonl", **given)
        assert sentence in str(error.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError, match="--precision int8: only for a VisionEncoderDecoderModel on a CPU"):
        load_captioner(made("llava"), "cpu", "int8")


def test_a_prompt_is_part_of_a_blip_2_caption(made: Callable[[str], Path], photos: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "c.jsonl"
    assert run(made("blip-2"), photos, output, prompt=None).values["new"] == 8
    plain = output.read_bytes()
    assert run(made("blip-2"), photos, output, prompt="Question: what? Answer:").values["new"] == 8
    assert output.read_bytes() != plain
    assert run(made("blip-2"), photos, output, prompt=None).values["new"] == 0
    assert output.read_bytes() == plain


def test_a_template_is_part_of_what_a_caption_is_known_by(made: Callable[[str], Path]) -> None:
    captioner = load_captioner(made("idefics3"), "cpu")
    before = model_fingerprint(captioner, SHORT)
    captioner.processor.chat_template = IDEFICS_CHAT + " "
    assert model_fingerprint(captioner, SHORT) != before


def test_an_adapter(made: Callable[[str], Path], photos: list[Path], tmp_path: Path) -> None:
    """Merged into the model that it names: the captions are those of peft's own model."""
    peft = pytest.importorskip("peft")
    model = AutoModelForImageTextToText.from_pretrained(made("llava"))
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    captioner = load_captioner(tmp_path / "adapter", "cpu")
    with torch.no_grad():
        inputs = captioner.prepare(read_image(photos[0]), Asked("What?"))
        row = adapted.eval().generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    (found,) = captioner.answer([inputs], SHORT)
    assert found.captions[0] == captioner.tokenizer.decode(row, skip_special_tokens=True).strip()
    plain = load_captioner(made("llava"), "cpu").answer([inputs], SHORT)[0]
    assert found.captions != plain.captions or found.scores != plain.scores
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "./gone"})
    )
    with pytest.raises(ModelError, match=r"adapter, an adapter of \./gone: no such folder"):
        load_captioner(tmp_path / "adapter", "cpu")


def test_batches() -> None:
    ids = [torch.tensor([[5, 6, 7]]), torch.tensor([[8]])]
    batch = [
        {"input_ids": one, "attention_mask": torch.ones_like(one), "pixel_values": torch.full((1, n, 3, 2), 1.0)}
        for n, one in enumerate(ids, 1)
    ]
    left, right = collate(batch, 9, left=True), collate(batch, 9, left=False)
    assert left["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert left["pixel_values"].shape == (2, 2, 3, 2)
    assert left["pixel_values"].sum() == 6 + 12
