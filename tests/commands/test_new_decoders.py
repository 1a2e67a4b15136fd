"""`preprocess --decoder small` and `tiny`: a tokenizer of the train captions alone, and a decoder with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preprocessing import SHARD_ROWS, DataSet, decoded, stored_processors, tree
from tokenizers import Tokenizer

import toolkit.cache.staging
import toolkit.commands.preprocess
from toolkit.cache.schema import open_cache
from toolkit.errors import InputError, RunError
from toolkit.models import processors
from toolkit.options import FinetuneOptions, PreprocessOptions


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shards, and the tokenizer trained in this process."""

    def image_processor(encoder: str, directory: Path) -> Any:
        return stored_processors(encoder, "", None, directory)[0]

    monkeypatch.setattr(toolkit.cache.staging, "SHARD_ROWS", SHARD_ROWS)
    monkeypatch.setattr(toolkit.commands.preprocess, "fetch_image_processor", image_processor)
    monkeypatch.setattr(processors, "_in_child", lambda job, request, doing: processors.JOBS[job](**request))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    (tmp_path / "encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    data = DataSet(tmp_path / "data", images=24)
    data.rows = [(name, f"{text} {int(name[:3]) * 'very '}long") for name, text in data.rows]
    data.write()
    return data


NEW: dict[str, Any] = {"preset": None, "encoder": "./encoder", "decoder": "small"}


def words(data: DataSet) -> tuple[dict[str, int], dict[str, list[str]]]:
    """The vocabulary, and the captions of each split."""
    cache = open_cache(data.out)
    tokenizer = Tokenizer.from_file(str(data.out / "tokenizer" / "tokenizer.json"))
    return tokenizer.get_vocab(), {
        split: [text for said in cache[split].column("captions") for text in said] for split in ("train", "validation")
    }


@pytest.mark.parametrize("lists", [False, True])
def test_the_tokenizer_knows_the_train_captions_alone(data: DataSet, tmp_path: Path, lists: bool) -> None:
    """A word of one split's captions becomes a token only if that is train."""
    options = dict(NEW)
    if lists:
        names = sorted({name for name, _ in data.rows})
        (tmp_path / "val.txt").write_text("\n".join(names[:6]))
        options |= {"val_list": tmp_path / "val.txt"}
    data.run(**options)
    train = set(open_cache(data.out)["train"].column("path"))
    data.rows = [(name, "zebra " * 9 if name in train else "giraffe " * 9) for name, _ in data.rows]
    data.write()
    data.run(**options)
    vocabulary, captions = words(data)
    assert "Ġzebra" in vocabulary
    assert not any("gir" in token or "raf" in token for token in vocabulary)
    assert len(captions["validation"]) > 0


def test_only_train_captions_change_the_tokenizer(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data.run(**NEW)
    tokenizer, cache = (data.out / "tokenizer" / "tokenizer.json").read_bytes(), open_cache(data.out)
    calls = decoded(monkeypatch)
    changed = {}
    for split in ("validation", "train"):
        name = cache[split].column("path")[0]
        data.rows = [(image, "other words " * 20 if image == name else text) for image, text in data.rows]
        data.write()
        summary = data.run(**NEW)
        changed[split] = (data.out / "tokenizer" / "tokenizer.json").read_bytes() != tokenizer
        assert summary.values["decoded"] == 0
    assert calls == []
    assert changed == {"validation": False, "train": True}
    again = data.out.with_name("again")
    data.run(**NEW, out=again)
    assert tree(data.out) == tree(again)
    assert data.beside() == ["again", "dataset"]


def test_stopped_after_each_shard(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    import toolkit.cache.build

    data.run(**NEW, out=data.root / "undisturbed")
    real_index, real_read, reads = toolkit.cache.build.write_index, toolkit.cache.build.read_image, list[str]()
    stops = 0
    for _ in range(40):
        left = [1]

        def write_index(*args: Any, left: list[int] = left) -> None:
            real_index(*args)
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        def read_image(source: Any) -> Any:
            reads.append("")
            return real_read(source)

        monkeypatch.setattr(toolkit.cache.build, "write_index", write_index)
        monkeypatch.setattr(toolkit.cache.build, "read_image", read_image)
        try:
            data.run(**NEW)
            break
        except RunError:
            stops += 1
    assert stops > 3
    assert len(reads) == 24  # each image once
    assert tree(data.out) == tree(data.root / "undisturbed")
    assert data.beside() == ["dataset"]


def test_other_options_after_a_stop(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before there is a tokenizer, then with another seed of the splits: the pixels serve."""
    with monkeypatch.context() as patch:

        def none(*args: Any) -> Any:
            raise KeyboardInterrupt

        patch.setattr(toolkit.commands.preprocess, "fetch_new_tokenizer", none)
        with pytest.raises(RunError):
            data.run(**NEW)
    calls = decoded(monkeypatch)
    data.run(**NEW, seed=3)
    assert calls == []
    data.run(**NEW, seed=3, out=data.out.with_name("again"))
    assert tree(data.out) == tree(data.out.with_name("again"))


def test_the_size_of_the_vocabulary(data: DataSet) -> None:
    data.run(**NEW)
    chosen = open_cache(data.out).manifest["labels"]["vocab_size"]
    data.run(**NEW, vocab_size=270)
    manifest = open_cache(data.out).manifest
    assert chosen > 270 == manifest["labels"]["vocab_size"] == manifest["options"]["vocab_size"]
    assert "up to date, nothing to do." in data.run(**NEW, vocab_size=270).text
    assert "done." in data.run(**NEW).text
    assert "up to date, nothing to do." in data.run(**NEW).text


def test_a_bad_image_is_still_a_row_with_a_reason(data: DataSet) -> None:
    (data.images / "bad.jpg").write_text("no picture")
    data.add("bad.jpg", None, ["nothing " * 30])
    data.write()
    assert data.run(**NEW).exit_code == 3
    (row,) = (json.loads(line) for line in (data.out / "rejected.jsonl").read_text().splitlines())
    assert row["path"] == "bad.jpg"
    assert "Ġnothing" not in words(data)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "tiny", "decoder": "small"}, "--preset tiny has its own"),
        ({"decoder": "gpt2", "vocab_size": 500}, "--vocab-size 500: only applies with --decoder small or tiny"),
        ({"decoder": "small", "vocab_size": 256}, "--vocab-size 256: must be at least 257"),
        ({"decoder": "small", "max_length": 129}, "--decoder small has positions for 128 tokens"),
        ({"decoder": "tiny", "max_length": 65}, "--decoder tiny has positions for 64 tokens"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PreprocessOptions(**options)


def test_a_folder_of_that_name(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`./small` is a folder's, and read as one."""
    asked = []

    def fetch(encoder: str, decoder: str, preset: str | None, directory: Path) -> Any:
        asked.append(decoder)
        return stored_processors(encoder, decoder, preset, directory)

    (tmp_path / "small").mkdir()
    monkeypatch.setattr(toolkit.commands.preprocess, "fetch_processors", fetch)
    data.run(**NEW)
    assert asked == []
    data.run(**{**NEW, "decoder": "./small"})
    assert asked == ["./small"]


def test_the_image_processor_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    ViTImageProcessorPil(size={"height": 24, "width": 32}).save_pretrained(tmp_path / "encoder")
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        found.append(
            (processors.fetch_image_processor(str(tmp_path / "encoder"), tmp_path / name), tree(tmp_path / name))
        )
        monkeypatch.setattr(processors, "_in_child", None)
    assert found[0] == found[1]
    assert list(found[0][1]) == ["image_processor/preprocessor_config.json"]


@pytest.mark.parametrize("decoder", ["tiny", "small"])
def test_a_captioner_beside_a_pretrained_encoder(decoder: str, sample_dir: Path, tmp_path: Path) -> None:
    """Trained for two updates and saved; the same cache and seed give the same weights, the encoder's are the given ones."""
    import torch
    from encoders import tiny_encoder
    from safetensors.torch import load_file
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from toolkit import load_captioner
    from toolkit.commands.finetune import finetune

    encoder = tiny_encoder("vit")
    encoder.save_pretrained(tmp_path / "encoder")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolkit.commands.preprocess, "fetch_image_processor", processors.fetch_image_processor)
        cache = tmp_path / "cache"
        toolkit.commands.preprocess.preprocess(
            PreprocessOptions(
                annotations=sample_dir / "captions.txt", images=sample_dir / "Images", out=cache, num_workers=1,
                encoder=str(tmp_path / "encoder"), decoder=decoder,
            )
        )  # fmt: skip
    weights = []
    for name in ("one", "other"):
        options = FinetuneOptions(cache=cache, output_dir=tmp_path / name, max_steps=2, freeze_encoder=True)
        finetune(options)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert load_captioner(tmp_path / "one").model.config.decoder.n_layer == {"tiny": 2, "small": 4}[decoder]
    kept = [name for name in weights[0] if name.endswith("patch_embeddings.projection.weight")]
    assert torch.equal(weights[0][kept[0]], encoder.state_dict()["embeddings.patch_embeddings.projection.weight"])
    card = (tmp_path / "one" / "README.md").read_text()
    assert f"| decoder | {decoder} |" in card
    assert f"- {decoder}\n" not in card  # of the hub's base models
