"""Prompts: what each image is asked, what of an answer is a caption, and that a caption is known by its prompt."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from toolkit.captioning import shards
from toolkit.captioning.captioner import Captioner, Decoded, load_captioner
from toolkit.captioning.prompts import Alternative, Asked, Earlier, Prompts, caption_of, parse_prompts
from toolkit.commands import batch_caption as command
from toolkit.data.sources import FoundImage
from toolkit.errors import ImageError, InputError, UnusedOption
from toolkit.options import BatchCaptionOptions, CaptionOptions, GenerationOptions, PromptOptions
from toolkit.options.fields import from_flat
from toolkit.records import CaptionResult, Summary

# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"prompt": " "}, "--prompt ' ': is blank; leave it out."),
        ({"prompt": "{nane}?"}, "--prompt {nane}?: there is no field {nane}; there are {name}, {folder}, {caption}, and"),
        ({"prompt": "{name.x}"}, "there is no field {name.x}"),
        ({"prompt": "{name!r}"}, "there is no field {name}; there are"),
        ({"prompt": "{}"}, "there is no field {}; there are"),
        ({"prompt": "a { b"}, "has a brace without its other; write {{ or }} for a brace itself."),
        ({"prompt": "a", "prompt_file": "p.txt"}, "--prompt a: --prompt-file has prompts too; leave one of the two out."),
        ({"system_prompt": "Be brief."}, "--system-prompt Be brief.: only applies with --prompt or --prompt-file"),
        ({"keep_raw": True}, "--keep-raw True: only applies with --prompt"),
        ({"captions_from": "c.jsonl"}, "--captions-from c.jsonl: only applies with --prompt"),
        ({"prompt": "a", "seed": 7}, "--seed 7: only applies with --sample"),
        ({"max_length": 9, "max_new_tokens": 8}, "--max-new-tokens 8: --max-length says it too"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0: must be at least 1"),
    ],
)  # fmt: skip
def test_options_that_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        from_flat(BatchCaptionOptions, given)
    assert sentence in str(error.value)


def test_options_that_are_taken() -> None:
    from_flat(BatchCaptionOptions, {"prompt_file": "p.txt", "seed": 7, "max_new_tokens": 8})
    options = from_flat(CaptionOptions, {"prompt": "{{x}} {folder}", "system_prompt": "Be brief."})
    assert options.prompting == PromptOptions(prompt="{{x}} {folder}", system_prompt="Be brief.")


# ---- what is asked --------------------------------------------------------------------------------------------------


def test_fields(tmp_path: Path) -> None:
    image = FoundImage(tmp_path, "10 alice/IMG.01.jpg")
    prompts = Prompts.of(PromptOptions(prompt="{name} of {folder}, {{}}", system_prompt="You see {folder}."))
    assert prompts is not None
    assert prompts.of_image(image, "c") == Asked("IMG.01 of 10 alice, {}", "You see 10 alice.")
    (tmp_path / "here").mkdir()
    above = prompts.fields(FoundImage(tmp_path / "here" / ".." / "here", "a.png"))
    assert above == {"name": "a", "folder": "here", "caption": None}
    # what is filled in is text, whatever it looks like
    assert prompts.ask("c", {"name": "{name}", "folder": "{0}"}).text == "{name} of {0}, {}"
    assert Prompts.of(PromptOptions()) is None


def test_captions_that_are_filled_in(tmp_path: Path) -> None:
    prompts = Prompts.of(PromptOptions(prompt="Refine: {caption}"))
    assert prompts is not None
    image = FoundImage(tmp_path, "a.jpg")
    with pytest.raises(ImageError, match="there is no caption of it to fill into the prompt"):
        prompts.of_image(image, "c")
    (tmp_path / "a.jpg.txt").write_text("from the longer name\n")
    assert prompts.of_image(image, "c").text == "Refine: from the longer name"
    (tmp_path / "a.txt").write_text("\n  a red dog \nanother\n")
    assert prompts.of_image(image, "c").text == "Refine: a red dog"
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ImageError, match=r"a\.txt beside it can't be read"):
        prompts.of_image(image, "c")
    earlier = Earlier([("sub/caf\u00e9.jpg", "first"), ("sub/cafe\u0301.jpg", "second"), ("b", "of a text file")])
    prompts = Prompts.of(PromptOptions(prompt="{caption}", captions_from=Path("c.jsonl")), earlier=earlier)
    assert prompts is not None
    assert prompts.of_image(FoundImage(tmp_path, "sub/cafe\u0301.jpg"), "c").text == "first"
    assert prompts.of_image(FoundImage(tmp_path, "b.png"), "c").text == "of a text file"
    with pytest.raises(InputError, match=r"--captions-from c\.jsonl: no prompt has \{caption\}, which it is for"):
        Prompts.of(PromptOptions(prompt="{name}", captions_from=Path("c.jsonl")))


def test_alternatives(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffDescribe it.\n\n  3 | What is in {folder}?\n0.5|1 | x\n", encoding="utf-8")
    lines = Prompts.of(PromptOptions(prompt_file=file))
    assert lines is not None
    assert lines.alternatives == ((1, "Describe it."), (3, "What is in {folder}?"), (0.5, "1 | x"))
    contents = [f"{i:064x}" for i in range(9000)]
    drawn = [lines.draw(content) for content in contents]
    shares = Counter(drawn)
    for weight, text in lines.alternatives:
        assert shares[text] / 9000 == pytest.approx(weight / 4.5, abs=0.02)
    # the same again, by the same text in any order of asking; another seed draws others
    again = Prompts.of(PromptOptions(prompt_file=("Describe it.", "3 | What is in {folder}?", "0.5|1 | x")))
    assert again is not None
    assert [again.draw(content) for content in reversed(contents)] == drawn[::-1]
    assert [Prompts(lines.alternatives, seed=1).draw(content) for content in contents] != drawn


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, "can't be read (No such file or directory)"),
        (b"", "is empty; write one prompt a line"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"0 | never", "the line '0 | never': must be a weight above 0, |, and a prompt"),
        (b"2 |", "the line '2 |': must be a weight"),
        (b"ok\n2 | {size}", "the line '2 | {size}': there is no field {size}"),
    ],
)
def test_files_of_prompts_that_are_refused(data: bytes | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(InputError) as error:
        Prompts.of(PromptOptions(prompt_file=file))
    assert sentence in str(error.value)


def test_weights_of_a_line() -> None:
    assert parse_prompts(("3|a|b",)) == (Alternative(3.0, "a|b"),)
    assert parse_prompts(("v2 | a", "<CAPTION>")) == (Alternative(1.0, "v2 | a"), Alternative(1.0, "<CAPTION>"))


def test_keys() -> None:
    keys = {Asked("a").key, Asked("b").key, Asked("a", "b").key, Asked("a", "").key, Asked("a\0b").key}
    assert len(keys) == 5
    assert Asked("a").key == Asked("a", None).key


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        (" A dog runs.\n", "A dog runs."),
        ("<think>A dog?\nor a cat</think>\n\nA dog runs.", "A dog runs."),
        ("I see a dog.</think>\nA dog runs.", "A dog runs."),
        ("<think>I have not", ""),
        ("<thinking>hm</thinking><answer>A dog</answer>", "A dog"),
        ("◁think▷hm◁/think▷A dog", "A dog"),
        ("Assistant: A dog", "A dog"),
        ("ASSISTANT:\nA dog", "A dog"),
        ("<|im_start|>assistant\nA dog", "A dog"),
        ("<|assistant|> A dog", "A dog"),
        ("model\nA dog", "A dog"),
        ("assistant\n\nA dog", "A dog"),
        ("Model: T-Ford, an assistant: none", "Model: T-Ford, an assistant: none"),
        ("assistant professor at a desk", "assistant professor at a desk"),
        ("I think a <b>dog</b> runs", "I think a <b>dog</b> runs"),
    ],
)
def test_captions_of_answers(answer: str, caption: str) -> None:
    assert caption_of(answer) == caption


# ---- captions are known by their prompt ------------------------------------------------------------------------------


class Echo(Captioner):
    """Answers what it is asked."""

    seen: list[Asked] = []  # noqa: RUF012 - of all of them

    def prepare(self, image: Image.Image, asked: Asked | None = None) -> Any:
        assert asked is not None
        return asked

    def answer(self, prepared: Sequence[Any], options: GenerationOptions) -> list[Decoded]:
        Echo.seen += prepared
        return [Decoded((one.text,), (-1.0,), (True,), (f"<s>{one.text}</s>",)) for one in prepared]


Run = Callable[..., Summary]


@pytest.fixture
def echo(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Captioner:
    captioner = Echo(**{**vars(load_captioner(model_dir, "cpu")), "prompted": "must"})
    monkeypatch.setattr(Echo, "seen", [])
    for module in (command, shards):
        monkeypatch.setattr(module, "load_captioner", lambda *_: captioner)
    return captioner


@pytest.fixture
def run(echo: Captioner, sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    pictures = sorted((sample_dir / "Images").iterdir())[:3]
    for name, picture in (("a/1.jpg", pictures[0]), ("a/2.jpg", pictures[1]), ("b/1.jpg", pictures[0])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(picture, tmp_path / name)
    monkeypatch.chdir(tmp_path)

    def run(**given: Any) -> Summary:
        Echo.seen.clear()
        return command.batch_caption(from_flat(BatchCaptionOptions, {"paths": (".",), "num_workers": 2, **given}))

    return run


def captions(file: str = "captions.jsonl") -> dict[str, str]:
    rows = map(json.loads, Path(file).read_text().splitlines())
    return {row["image"]: row["caption"] for row in rows}


def test_captions_by_prompt(run: Run) -> None:
    assert run(prompt="What?").values["new"] == 2  # a copy has the same caption
    assert captions() == dict.fromkeys(("a/1.jpg", "a/2.jpg", "b/1.jpg"), "What?")
    assert run(prompt="What?").values["new"] == 0
    assert run(prompt="What? {folder}/{name}").values["new"] == 3  # unless it is asked something else
    assert captions() == {"a/1.jpg": "What? a/1", "a/2.jpg": "What? a/2", "b/1.jpg": "What? b/1"}
    assert run(prompt="What?").values["new"] == 0  # both are kept
    assert set(captions().values()) == {"What?"}
    assert run(prompt="What?", system_prompt="Be brief.").values["new"] == 2
    assert Echo.seen == [Asked("What?", "Be brief.")] * 2
    dry = run(prompt="What now?", dry_run=True)
    assert (dry.values["captioned"], dry.values["new"]) == (0, 3)
    assert run(prompt="What?", dry_run=True).values["captioned"] == 3
    Path("a/1.jpg").rename("a/3.jpg")
    assert run(prompt="What?").values["new"] == 0
    assert run(prompt="What? {folder}/{name}").values["new"] == 1
    assert captions()["a/3.jpg"] == "What? a/3"


def test_refining(run: Run) -> None:
    Path("a/1.txt").write_text("a dog")
    Path("b/1.txt").write_text("a cat")
    summary = run(prompt="Refine: {caption}")
    assert (summary.exit_code, summary.values["errors"]) == (3, 1)
    assert captions() == {"a/1.jpg": "Refine: a dog", "a/2.jpg": None, "b/1.jpg": "Refine: a cat"}
    assert "there is no caption of it to fill into the prompt" in Path("captions.jsonl").read_text()
    Path("a/2.txt").write_text("a bird")
    Path("a/1.txt").write_text("a hound")
    summary = run(prompt="Refine: {caption}")
    assert (summary.exit_code, summary.values["new"], len(Echo.seen)) == (0, 2, 2)
    assert captions() == {"a/1.jpg": "Refine: a hound", "a/2.jpg": "Refine: a bird", "b/1.jpg": "Refine: a cat"}
    run(prompt="Better: {caption}", captions_from="captions.jsonl", output="better.jsonl")
    assert captions("better.jsonl")["a/1.jpg"] == "Better: Refine: a hound"
    for given, sentence in (
        ({"format": "txt"}, "would replace the texts that {caption} is taken from"),
        ({"captions_from": "captions.jsonl"}, "--captions-from captions.jsonl: is the output"),
        ({"captions_from": "gone.jsonl"}, "--captions-from gone.jsonl: no such file"),
    ):
        with pytest.raises(InputError) as error:
            run(prompt="{caption}", **given)
        assert sentence in str(error.value)
    run(prompt="{caption}", format="txt", output="texts")
    assert Path("texts/a/1.txt").read_text() == "a hound\n"


def test_raw_text_is_kept_on_request(run: Run) -> None:
    run(prompt="What?", keep_raw=True)
    run(prompt="Who?")
    rows = sqlite3.connect("captions.jsonl.state").execute("SELECT row FROM captions").fetchall()
    raw = {row["caption"]: row.get("raw") for (text,) in rows for row in [json.loads(text)]}
    assert raw == {"What?": ["<s>What?</s>"], "Who?": None}
    assert "raw" not in Path("captions.jsonl").read_text()
    row = CaptionResult("a", "b", ("b",), raw=("<s>b",))
    assert CaptionResult.from_row(row.to_row(kept=True)) == row


def test_prompts_in_shards(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is filled in is written with the shard's images: a node knows no earlier output."""
    Path("earlier.jsonl").write_text('{"image": "a/1.jpg", "caption": "one"}\n{"image": "b/1.jpg", "caption": "two"}\n')

    def here(function: Any, tasks: Any, *_: Any) -> None:
        for task in tasks:
            function(task)

    monkeypatch.setitem(shards.ENGINES, "ray", here)
    monkeypatch.setattr("toolkit.options.fields.find_spec", lambda name: True)
    Path("p.txt").write_text("{folder}/{name}: {caption}\n")
    given = {"prompt_file": "p.txt", "captions_from": "earlier.jsonl", "keep_raw": True}
    summary = run(**given, engine="ray")
    assert (summary.exit_code, summary.values["errors"]) == (3, 1)
    assert captions() == {"a/1.jpg": "a/1: one", "a/2.jpg": None, "b/1.jpg": "b/1: two"}
    run(**given)
    assert Echo.seen == []


def test_no_prompt_is_about_the_pixels_of_a_cache(run: Run, cache_dir: Path) -> None:
    with pytest.raises(InputError, match=r"--prompt: .* is a cache, whose pixels are not asked about; name the images"):
        run(paths=(str(cache_dir),), prompt="What?")


def test_captioners_with_and_without_prompts(run: Run, echo: Captioner, model_dir: Path, sample_dir: Path) -> None:
    with pytest.raises(InputError, match=r"has to be told what to do; add --prompt 'Describe the image\.'"):
        run()
    assert not Path("captions.jsonl.state").exists()
    ours, picture = load_captioner(model_dir, "cpu"), sorted((sample_dir / "Images").iterdir())[0]
    with pytest.raises(
        UnusedOption, match="--prompt What: a captioner of type vision-encoder-decoder captions without"
    ):
        ours.caption([picture], prompting=PromptOptions(prompt="What"))
    asking = PromptOptions(prompt="{folder} {name}")
    found = echo.caption([picture, Image.open(picture)], prompting=asking)
    assert [one.caption for one in found] == [f"Images {picture.stem}", " 1"]
    with pytest.raises(InputError, match="reads no captions_from"):
        echo.caption([picture], prompting=PromptOptions(prompt="{caption}", captions_from=Path("c.jsonl")))
