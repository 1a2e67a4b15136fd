"""Words that never appear, texts that captions begin with, lengths and penalties: token by token as stock `generate`."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import MAKES, bert_tokenizer, make
from random_models import complete, forced_score, random_model, random_settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessorList, PreTrainedTokenizerFast
from transformers.generation.logits_process import NoBadWordsLogitsProcessor

from toolkit.captioning.bad_words import bad_words_ids, read_bad_words, segmentations
from toolkit.captioning.beam_search import process
from toolkit.captioning.captioner import load_captioner
from toolkit.captioning.generate import decode, stock, unsupported
from toolkit.commands.batch_caption import batch_caption
from toolkit.data.images import read_image
from toolkit.errors import InputError
from toolkit.options import BatchCaptionOptions, GenerationOptions
from toolkit.options.fields import from_flat


@pytest.fixture(scope="module")
def paths(sample_dir: Path) -> list[Path]:
    return sorted((sample_dir / "Images").iterdir())[:5]


def control(rng: random.Random, vocabulary: int) -> tuple[dict[str, Any], list[int]]:
    """Banned sequences of one to four tokens, and a prefix."""

    def some(low: int, high: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(rng.randint(low, high))]

    banned = [some(1, 4) for _ in range(rng.randint(1, 40))]
    few = [sequence for sequence in banned if len(sequence) > 1] + banned[:2]  # else nothing is left to say
    return {"bad_words_ids": few, "repetition_penalty": rng.choice([1.0, 1.5, 0.8])}, some(0, 4)


# ---- our decoder ----------------------------------------------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default", "ignore:Unfeasible length constraints")
@pytest.mark.parametrize("images", [pytest.param(1, marks=SLOW), 3, pytest.param(8, marks=SLOW)])
def test_tokens_of_generate(images: int) -> None:
    bit, begun = 0, 0
    for seed in range(1000 + images * 100, 1000 + images * 100 + 25):
        rng = random.Random(seed)
        model, config = random_model(rng), random_settings(rng)
        more, prefix = control(rng, model.config.decoder.vocab_size)
        config.update(**more)
        if config.max_length is not None:
            config.max_length += len(prefix)
        inputs = torch.randn(images, 3, 16, 16) * 2
        full = complete(model, config)
        assert unsupported(model, full) is None
        start = [full.decoder_start_token_id, *prefix]
        with torch.no_grad():
            wanted = model.generate(pixel_values=inputs, generation_config=full,
                                    decoder_input_ids=torch.tensor([start] * images))  # fmt: skip
        found = decode(model, config, inputs, prefix=prefix)
        where = f"seed {seed}: {prefix} {config.to_diff_dict()}"
        rows = [tokens for image in found for tokens in image.tokens]
        for row, tokens in zip(wanted.tolist(), rows, strict=True):
            assert row[1 : 1 + len(tokens)] == tokens, where
            assert set(row[1 + len(tokens) :]) <= {full.pad_token_id}, where
            assert tokens[: len(prefix)] == prefix
        same = stock(model, inputs, full, prefix=prefix)
        assert [image.tokens for image in same] == [image.tokens for image in found], where
        score = forced_score(model, inputs[0], [start[0], *rows[0]], len(start))
        assert found[0].scores[0] == pytest.approx(score, abs=1e-4), where
        full.bad_words_ids = None
        free = decode(model, full, inputs, prefix=prefix)
        bit += [image.tokens for image in free] != [image.tokens for image in found]
        begun += bool(prefix)
    assert bit > 3
    assert begun > 10


def test_samples_of_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the random numbers that our decoder draws by, stock sampling gives the same tokens."""
    for seed in range(30):
        rng = random.Random(seed)
        model = random_model(rng)
        more, prefix = control(rng, model.config.decoder.vocab_size)
        config = complete(model, random_settings(rng))
        config.update(num_beams=1, do_sample=True, num_return_sequences=3, top_k=9, top_p=0.9, temperature=1.3,
                      max_new_tokens=8, min_new_tokens=3, max_length=None, **more)  # fmt: skip
        inputs = torch.randn(2, 3, 16, 16)
        found = decode(model, config, inputs, seeds=[seed, seed + 1], prefix=prefix)
        for image in range(2):
            numbers = torch.rand(3, 9 + len(prefix), generator=torch.Generator().manual_seed(seed + image))
            place = itertools.count(len(prefix))

            def draw(probabilities: torch.Tensor, num_samples: int, numbers=numbers, place=place) -> torch.Tensor:
                sums = probabilities.double().cumsum(-1)
                random = numbers[:, next(place), None].double() * sums[:, -1:]
                return torch.searchsorted(sums, random, right=True)

            with monkeypatch.context() as patch, torch.no_grad():
                patch.setattr(torch, "multinomial", draw)
                start = [config.decoder_start_token_id, *prefix]
                rows = model.generate(pixel_values=inputs[image : image + 1], generation_config=config,
                                      decoder_input_ids=torch.tensor([start]))  # fmt: skip
            wanted = []
            for row in rows[:, 1:].tolist():
                ends = [i for i, token in enumerate(row) if i >= len(prefix) and token == config.eos_token_id]
                wanted.append(row[: ends[0] + 1] if ends else row)
            assert sorted(found[image].tokens) == sorted(wanted), seed


def test_banned_sequences_of_the_stock_processor() -> None:
    """Images of different ages in one batch; what stands behind their age is noise."""
    from transformers import GenerationConfig

    from toolkit.captioning.beam_search import BannedSequences

    torch.manual_seed(0)
    tokens, length = torch.randint(0, 4, (5, 3, 9)), torch.tensor([1, 2, 4, 7, 9])
    scores = torch.randn(5, 3, 12)
    banned = [[5], [2], *(torch.randint(0, 4, (n,)).tolist() for n in (2, 2, 2, 3, 3, 3, 4, 9, 10))]
    config = GenerationConfig(bad_words_ids=banned, eos_token_id=2)
    found = process(scores.clone(), tokens, length, config, BannedSequences(config, torch.device("cpu")))
    processors = LogitsProcessorList([NoBadWordsLogitsProcessor(banned, 2)])
    for image, n in enumerate(length.tolist()):
        assert torch.equal(found[image], processors(tokens[image, :, :n], scores[image].clone()))
    assert (found[..., 5] == -torch.inf).all()
    assert (found[..., 2] == scores[..., 2]).any()  # the end is never banned


# ---- words ----------------------------------------------------------------------------------------------------------


def byte_tokenizer() -> Any:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    texts = ["a cat sat on the cats", "Cat CAT scatter catalog", "naïve café"] * 3
    raw.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", bos_token="<eos>")


def space_tokenizer() -> Any:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.train_from_iterator(
        ["a cat sat on the cats", "Cat CAT"] * 3, trainers.BpeTrainer(vocab_size=60, special_tokens=["<eos>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", bos_token="<eos>")


@pytest.mark.parametrize("make_tokenizer", [byte_tokenizer, space_tokenizer, lambda: bert_tokenizer()])
@pytest.mark.parametrize("word", ["cat", "a cat", "dog"])
def test_every_tokenisation(make_tokenizer: Any, word: str) -> None:
    """All rows of up to four tokens that read as the word, found by trying them all."""
    tokenizer = make_tokenizer()
    spellings = {word, word.upper(), word.capitalize()}
    letters = set("".join(spellings) + " ▁Ġ#")
    known = [i for t, i in tokenizer.get_vocab().items() if set(t) <= letters and i not in tokenizer.all_special_ids]
    wanted = set()
    for n in range(1, 5 if len(known) < 25 else 4):
        for row in itertools.product(known, repeat=n):
            pieces = tokenizer.convert_ids_to_tokens(row)
            if pieces[0].startswith("##") or pieces[0] in ("Ġ", "▁"):  # what follows is the word
                continue
            if tokenizer.decode(row, clean_up_tokenization_spaces=False).removeprefix(" ") in spellings:
                wanted.add(row)
    found = {tuple(row) for row in bad_words_ids(tokenizer, (word,))}
    assert len(found) == len(bad_words_ids(tokenizer, (word,)))
    assert wanted <= found
    for row in found:
        assert tokenizer.decode(row, clean_up_tokenization_spaces=False).removeprefix(" ") in spellings


def test_all_ways_to_cut() -> None:
    pieces = {"a": 1, "b": 2, "ab": 3, "ba": 4}
    text = "abab"
    found = list(segmentations(4, lambda i, j: pieces.get(text[i:j])))
    assert found == [(3, 3), (1, 2, 3), (1, 4, 2), (3, 1, 2), (1, 2, 1, 2)]
    assert len(list(itertools.islice(segmentations(60, lambda i, j: j - i), 1000))) == 1000  # of 2 ** 59


def test_words_never_appear(model_dir: Path, paths: list[Path], tmp_path: Path) -> None:
    captioner = load_captioner(model_dir, "cpu")
    plain = captioner.caption(paths, GenerationOptions(num_captions=4))
    words = sorted({word for row in plain for text in row.captions for word in re.findall(r"\w+", text)})[:3]
    pairs = sorted({" ".join(pair) for row in plain for pair in itertools.pairwise(row.caption.split())})[:2]
    assert words
    file = tmp_path / "bad words.txt"
    file.write_text("\ufeff" + "\r\n".join([*words, "", f"  {pairs[0]} "]), encoding="utf-8")
    banned = re.compile(rf"\b({'|'.join(words)}|{re.escape(pairs[0])})\b", re.IGNORECASE)
    assert any(banned.search(text) for row in plain for text in row.captions)
    for options in ({"num_beams": 4, "num_captions": 4}, {"num_beams": 1}, {"sample": True, "num_captions": 5}):
        for form in (file, [*words, pairs[0]]):
            found = captioner.caption(paths, GenerationOptions(bad_words=form, **options))  # type: ignore[arg-type]
            assert not any(banned.search(text) for row in found for text in row.captions)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "can't be read"), (b"", "is empty"), (b"\xff\xfe", "not text in UTF-8")]
)
def test_files_of_words_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "words").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_bad_words(tmp_path / "words")


# ---- captioners -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_captions_begin_with_a_text(model_dir: Path, paths: list[Path], batch: int) -> None:
    captioner = load_captioner(model_dir, "cpu")
    found = captioner.caption(paths, GenerationOptions(start_with="two large ", max_length=14), batch_size=batch)
    assert all(result.caption.startswith("two large") for result in found)
    pixels = captioner.image_processor([read_image(path) for path in paths], return_tensors="pt").pixel_values
    ids = captioner.tokenizer("two large", add_special_tokens=False).input_ids
    start = captioner.model.generation_config.decoder_start_token_id
    tokens = captioner.model.generate(
        pixel_values=pixels, max_length=14, decoder_input_ids=torch.tensor([[start, *ids]] * len(paths))
    )
    texts = [text.strip() for text in captioner.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    assert [result.caption for result in found] == texts


@pytest.mark.parametrize("kind", list(MAKES))
def test_other_makes(kind: str, paths: list[Path], tmp_path: Path) -> None:
    folder = make(kind, tmp_path / kind)
    options = GenerationOptions(num_beams=3, max_length=14, min_length=8, repetition_penalty=1.3, start_with="a dog",
                                bad_words=("tree", "green hill", "a"))  # fmt: skip
    captioner = load_captioner(folder, "cpu")
    found = captioner.caption(paths, options, batch_size=3)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    images = [read_image(path) for path in paths]
    if kind == "git":  # as its page has it: the start token by hand
        inputs = dict(processor(images=images, return_tensors="pt"))
        ids = processor.tokenizer("a dog", add_special_tokens=False).input_ids
        inputs["input_ids"] = torch.tensor([[model.config.bos_token_id, *ids]] * len(images))
    elif kind == "blip":
        inputs = dict(processor(images=images, return_tensors="pt"))
        ids = processor.tokenizer("a dog", add_special_tokens=False).input_ids
        inputs["input_ids"] = torch.tensor([[2, *ids, 3]] * len(images))  # [CLS] and [SEP] around it
    else:
        inputs = dict(processor(images=images, return_tensors="pt"))
        ids = processor.tokenizer("a dog", add_special_tokens=False).input_ids
        inputs["input_ids"] = torch.tensor([[2] * 4 + [1, *ids]] * len(images))
    with torch.no_grad():
        sequences = model.generate(
            **inputs, num_beams=3, max_new_tokens=13 - len(ids), min_new_tokens=7 - len(ids), repetition_penalty=1.3,
            bad_words_ids=bad_words_ids(captioner.tokenizer, options.bad_words),
        )  # fmt: skip
    texts = [text.strip() for text in processor.batch_decode(sequences, skip_special_tokens=True)]
    assert [result.caption for result in found] == texts
    assert all(text.startswith("a dog") for text in texts)


def test_they_decide_whose_caption_it_is(model_dir: Path, pictures: Any, tmp_path: Path) -> None:
    """Each of them is part of what the journal knows a caption by."""
    folder, words = pictures(2), tmp_path / "words.txt"
    words.write_text("small\n")

    def new(**more: Any) -> int:
        given = {"paths": (str(folder),), "model": str(model_dir), "output": tmp_path / "out.jsonl", "num_beams": 2,
                 "max_length": 10, **more}  # fmt: skip
        return batch_caption(from_flat(BatchCaptionOptions, given)).values["new"]

    images = len(list(folder.iterdir()))
    assert new() == images
    for more in (
        {"min_length": 5},
        {"repetition_penalty": 1.4},
        {"bad_words": words},
        {"start_with": "a"},
        {"start_with": "two"},
    ):
        assert new(**more) == images, more
        assert new(**more) == 0, more
    words.write_text("large\n")
    assert new(bad_words=words) == images
    assert new() == 0
