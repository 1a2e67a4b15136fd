"""Captions to label rows: EOS taught, padding masked by length, never by id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.cache.labels import IGNORE_INDEX, CaptionEncoder

CAPTIONS = ["a dog runs .", "a child in a pink dress climbs some stairs", "zwei Hunde, grün & groß", "犬 🐕"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from toolkit.models.presets import train_tokenizer

    return train_tokenizer(CAPTIONS * 3)


@pytest.fixture(scope="module")
def file(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder / "tokenizer.json"


def test_rows_are_the_tokens_then_eos_then_mask(tokenizer: Any, file: Path) -> None:
    labels, truncated = CaptionEncoder(file, tokenizer.eos_token_id, 40)(CAPTIONS)
    assert labels.dtype == np.int32
    assert labels.shape == (4, 40)
    for row, caption in zip(labels, CAPTIONS, strict=True):
        ids = tokenizer(caption, add_special_tokens=False).input_ids
        assert row.tolist() == [*ids, tokenizer.eos_token_id] + [IGNORE_INDEX] * (40 - len(ids) - 1)
        assert tokenizer.decode(row[: len(ids)]) == caption
    assert not truncated.any()


def test_a_long_caption_is_cut_and_keeps_its_eos(tokenizer: Any, file: Path) -> None:
    ids = tokenizer(CAPTIONS[1], add_special_tokens=False).input_ids
    for max_length in (2, 5, len(ids), len(ids) + 1):
        labels, truncated = CaptionEncoder(file, tokenizer.eos_token_id, max_length)(CAPTIONS[1:2])
        kept = min(len(ids), max_length - 1)
        assert labels[0, : kept + 1].tolist() == [*ids[:kept], tokenizer.eos_token_id]
        assert truncated.tolist() == [len(ids) + 1 > max_length]


def test_lengths_count_eos(tokenizer: Any, file: Path) -> None:
    encoder = CaptionEncoder(file, tokenizer.eos_token_id, 4)
    wanted = [len(tokenizer(c, add_special_tokens=False).input_ids) + 1 for c in CAPTIONS]
    assert encoder.lengths(CAPTIONS).tolist() == wanted


def test_truncation_and_padding_in_the_tokenizer_file_are_ignored(tokenizer: Any, file: Path) -> None:
    """A tokenizer saved after training by somebody else often carries both."""
    from tokenizers import Tokenizer

    inner = Tokenizer.from_file(str(file))
    inner.enable_truncation(3)
    inner.enable_padding(length=30)
    other = file.with_name("other.json")
    inner.save(str(other))
    a, b = (CaptionEncoder(f, tokenizer.eos_token_id, 40)(CAPTIONS)[0] for f in (file, other))
    assert np.array_equal(a, b)


def test_a_caption_that_spells_eos_is_text(tokenizer: Any, file: Path) -> None:
    """Scraped captions hold "<|endoftext|>"; as a token it would teach to stop in the middle."""
    labels, _ = CaptionEncoder(file, tokenizer.eos_token_id, 60)(["a dog<|endoftext|> runs"])
    assert (labels == tokenizer.eos_token_id).sum() == 1
    length = int((labels != IGNORE_INDEX).sum())
    assert tokenizer.decode(labels[0, : length - 1]) == "a dog<|endoftext|> runs"


def test_special_tokens_of_the_tokenizer_itself_stay_out(tmp_path: Path) -> None:
    """A BERT-like tokenizer would put [CLS] in front and [SEP] behind."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "dog": 4}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    inner.save(str(tmp_path / "tokenizer.json"))
    labels, _ = CaptionEncoder(tmp_path / "tokenizer.json", 2, 6)(["a dog"])
    assert labels.tolist() == [[3, 4, 2, -100, -100, -100]]
