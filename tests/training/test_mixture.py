"""Several caches in one run: halves of a cache are the whole, shares draw what they say, and metrics are those of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stopping import stops

from toolkit import cli
from toolkit.cache.schema import open_cache
from toolkit.commands.evaluate import evaluate
from toolkit.commands.finetune import finetune
from toolkit.commands.preprocess import preprocess
from toolkit.errors import InputError, OutputError, RunError
from toolkit.options import EvaluateOptions, FinetuneOptions, GenerationOptions, PreprocessOptions
from toolkit.options.fields import from_flat, to_json
from toolkit.records import Summary
from toolkit.training.collator import CaptionDataset, LengthGroupedSampler, Shares
from toolkit.training.features import picture_hashes
from toolkit.training.mixture import Mixture, open_caches, split_share


@pytest.fixture(scope="module")
def caches(sample_dir: Path, model_dir: Path, made_once: Callable) -> Path:
    """whole, and its halves first and second, for the tokenizer of a captioner; other has another seed."""

    def make(folder: Path) -> None:
        folder.mkdir()
        head, *lines = (sample_dir / "captions.txt").read_text().splitlines()
        for name, part in (("first", lines[:120]), ("second", lines[120:]), ("whole", lines), ("other", lines)):
            (folder / f"{name}.txt").write_text("\n".join([head, *part]) + "\n")
            options = PreprocessOptions(
                annotations=folder / f"{name}.txt", images=sample_dir / "Images", out=folder / name, num_workers=1,
                encoder=str(model_dir), decoder=str(model_dir), val_fraction=0.25, seed=7 if name == "other" else 42,
            )  # fmt: skip
            preprocess(options)

    return made_once("mixture", make)


@pytest.fixture
def options(caches: Path, model_dir: Path, tmp_path: Path) -> FinetuneOptions:
    return FinetuneOptions(
        cache=caches / "first", more_caches=(str(caches / "second"),), output_dir=tmp_path / "model", batch_size=4, epochs=1,
        init_from=str(model_dir), lr=1e-3, decoder_dropout=0.1, generation=GenerationOptions(num_beams=1, max_length=20),
    )  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_halves_are_the_whole(options: FinetuneOptions, caches: Path) -> None:
    """The same weights, to the bit, and metrics; those of each half are what `evaluate` finds on its cache."""
    whole = replace(options, cache=caches / "whole", more_caches=(), output_dir=options.output_dir.with_name("whole"))
    one, other = finetune(whole).values, finetune(options).values
    assert all(
        torch.equal(value, weights(whole.output_dir)[name]) for name, value in weights(options.output_dir).items()
    )
    assert one["validation"] == other["validation"]
    sizes = [len(open_cache(caches / name)["train"]) for name in ("first", "second")]
    assert [(d["name"], d["share"], d["images"]) for d in other["data_sets"]] == [
        ("first", 1.0, sizes[0]), ("second", 1.0, sizes[1]),
    ]  # fmt: skip
    for found in other["data_sets"]:
        scored = evaluate(
            from_flat(EvaluateOptions, {"model": str(options.output_dir), "references": caches / found["name"],
                                        "split": "validation", "num_beams": 1, "max_length": 20})
        ).values  # fmt: skip
        expected = {name: scored["metrics"][name]["score"] for name in ("cider", "bleu_4", "rouge_l")}
        assert {n: v for n, v in found["validation"].items() if n != "loss"} == pytest.approx(expected, abs=1e-9)
    assert (
        f"first: {sizes[0]} train images an epoch (share 1); validation loss"
        in (options.output_dir / "README.md").read_text()
    )
    assert "finished already" in finetune(options).text
    with pytest.raises(OutputError, match="another cache, or other shares of several"):
        finetune(replace(options, more_caches=(f"{caches / 'second'}:0.5",)))


def test_a_share_on_cached_features_is_resumed_to_the_bit(
    options: FinetuneOptions, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(options, more_caches=(f"{caches / 'second'}:0.5",), cache_features=True, epochs=2, save_steps=1)
    values = finetune(options).values
    sizes = [len(open_cache(caches / name)["train"]) for name in ("first", "second")]
    images = [sizes[0], round(sizes[1] / 2)]
    assert [found["images"] for found in values["data_sets"]] == images
    assert values["steps"] == 2 * -(-sum(images) // 4)
    other = replace(options, output_dir=options.output_dir.with_name("other"))
    with monkeypatch.context() as patch:
        stops(patch, values["steps"] // 2 + 3)  # within the second epoch
        with pytest.raises(RunError, match="the last checkpoint"):
            finetune(other)
    finetune(other)
    assert all(
        torch.equal(value, weights(other.output_dir)[name]) for name, value in weights(options.output_dir).items()
    )


def test_what_an_epoch_draws(caches: Path) -> None:
    """Each image as often as its share says, other ones each epoch, all of them the same for the same seed."""
    cache = open_caches([caches / "first", f"{caches / 'second'}:2.5"])
    assert isinstance(cache, Mixture)
    data = CaptionDataset(cache["train"])
    first, second = cache.positions("train").values()
    data.shares = cache.shares
    sampler = LengthGroupedSampler(data, 4, seed=3)
    rest = round(2.5 * len(second)) - 2 * len(second)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert len(drawn) == len(sampler) == len(first) + 2 * len(second) + rest
        assert drawn == list(sampler)
        times = Counter(drawn)
        assert {times[row] for row in first} == {1}
        assert Counter(times[row] for row in second) == {2: len(second) - rest, 3: rest}
        epochs.append({row for row in second if times[row] == 3})
    assert epochs[0] != epochs[1]


def test_counts_of_shares() -> None:
    rows = np.arange(10)
    shares = Shares([(rows, 1.0), (rows, 0.25), (rows, 0.01), (rows[:0], 1.0), (rows, 3.0)])
    assert shares.counts == [10, 2, 1, 0, 30]
    assert len(shares.drawn(np.random.default_rng(0))) == 43


def test_no_image_is_trained_on_that_another_cache_evaluates(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = open_caches([caches / "whole", caches / "other"])
    assert isinstance(cache, Mixture)
    held = {h for part in cache.parts for split in ("validation", "test") for h in picture_hashes(part.cache, split)}
    train = [h for part in cache.parts for h in picture_hashes(part.cache, "train")]
    drawn = cache.shares.drawn(np.random.default_rng(0))
    assert sorted(drawn.tolist()) == [row for row, picture in enumerate(train) if picture not in held]
    assert 0 < len(drawn) < len(train)
    said = f"note: {len(train) - len(drawn)} train images are also in the validation or test split of another"
    assert said in capsys.readouterr().err


def test_mistakes(caches: Path, cache_dir: Path, tmp_path: Path, sample_dir: Path) -> None:
    preprocess(
        PreprocessOptions(
            annotations=sample_dir / "captions.txt", images=sample_dir / "Images", out=tmp_path / "short", num_workers=1,
            preset="tiny", max_length=20,
        )
    )  # fmt: skip
    with pytest.raises(InputError, match=r"short: its labels have max_length 20, those of .* 50; preprocess both with"):
        open_caches([cache_dir, tmp_path / "short"])
    with pytest.raises(InputError, match="a cache is named twice; give it once, with a share of 2 to use it twice"):
        open_caches([cache_dir, f"{cache_dir}:2"])
    for share in ("0", "-1", "nan", "inf"):
        with pytest.raises(InputError, match=r":.*: a share is above 0, and finite"):
            split_share(f"{cache_dir}:{share}")
    (tmp_path / "mine:0.5").mkdir()
    assert split_share(tmp_path / "mine:0.5") == (tmp_path / "mine:0.5", 1.0)
    assert split_share("s3://bucket/cache:0.5") == ("s3://bucket/cache", 0.5)
    assert split_share("s3://bucket/cache") == ("s3://bucket/cache", 1.0)
    assert open_caches([cache_dir]) == open_cache(cache_dir)
    assert isinstance(open_caches([cache_dir, caches / "first"]), Mixture)  # made for a captioner trained on that cache


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found: list[FinetuneOptions] = []
    monkeypatch.setattr("toolkit.commands.finetune.finetune", lambda options: found.append(options) or Summary("", {}))
    for typed in (["a"], ["a", "b:0.5", "c", "--seed", "1"], []):
        monkeypatch.setattr("sys.argv", ["toolkit", "finetune", *typed])
        with pytest.raises(SystemExit):
            cli.main()
    assert [(o.cache, o.more_caches) for o in found] == [
        (Path("a"), ()), (Path("a"), ("b:0.5", "c")), (Path("cache/dataset"), ()),
    ]  # fmt: skip
    assert from_flat(FinetuneOptions, to_json(found[1])) == found[1]
