"""Encoder states on disk: the same training as with the encoder, computed once, resumable, and never stale."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranked import difference, ended, torchrun, weights
from safetensors.torch import load_file
from transformers import ViTModel

from toolkit.cache.schema import Cache, open_cache
from toolkit.cache.workspace import swap
from toolkit.commands.finetune import finetune
from toolkit.data.pixels import PixelTransform
from toolkit.errors import InputError, OutputError, RunError
from toolkit.models.loading import build_captioner
from toolkit.models.precision import PixelNormalizer
from toolkit.options import FinetuneOptions, GenerationOptions
from toolkit.training import features
from toolkit.training.features import FeatureDataset, encode_splits, encoder_features, picture_hashes

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"max_steps": 4, "batch_size": 8, "generation": GenerationOptions(num_beams=2)}


@pytest.fixture
def cache(cache_dir: Path, tmp_path: Path) -> Cache:
    """A copy, since encoder features are written into it."""
    shutil.copytree(cache_dir, tmp_path / "cache")
    return open_cache(tmp_path / "cache")


def parts(cache: Cache, seed: int = 0) -> tuple[Any, PixelNormalizer]:
    labels = cache.manifest["labels"]
    tokens = cache.special_tokens
    config = json.loads((cache.directory / "image_processor" / "preprocessor_config.json").read_text())
    model = build_captioner("", "", "tiny", labels["vocab_size"], tokens, seed)
    return model.encoder, PixelNormalizer(PixelTransform.from_processor_config(config))


def encode(cache: Cache, encoder: Any = None, stored: str = "fp32", splits: Any = ("train", "validation")) -> Any:
    ours, normalizer = parts(cache)
    return encode_splits(cache, splits, encoder or ours, normalizer, stored, torch.float32)


RANK = """
import os
from toolkit.training import features
from toolkit.cli import main
features.SHARD_BYTES, features.BATCH = 5 * 17 * 128 * 4 + 3, 2
writing = features._finishing
def told(path):
    os.write(1, f"rank {features.rank()} {path.name}\\n".encode())
    return writing(path)
features._finishing = told
main()
"""


def test_each_rank_encodes_some(cache: Cache, small_pieces: None, tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    command = ["finetune", str(cache.directory), "--batch-size", "4", "--cache-features", "--feature-precision", "fp32"]
    out = str(tmp_path / "two")
    code, said, errors, _ = ended(
        torchrun(2, str(tmp_path / "rank.py"), *command, "--max-steps", "4", "--output-dir", out)
    )
    assert (code, errors) == (0, [])
    wrote = [line.split()[1:] for line in said.splitlines() if line.startswith("rank ")]
    by_two = {path.name: path.read_bytes() for path in (cache.directory / "features").rglob("*.bin")}
    assert sorted(name for _, name in wrote) == sorted(by_two), "each shard once"
    assert {rank for rank, _ in wrote} == {"0", "1"}
    shutil.rmtree(cache.directory / "features")
    finetune(
        FinetuneOptions(
            cache=cache.directory, output_dir=tmp_path / "one", batch_size=8, max_steps=4, cache_features=True,
            feature_precision="fp32",
        )
    )  # fmt: skip
    assert by_two == {path.name: path.read_bytes() for path in (cache.directory / "features").rglob("*.bin")}
    assert difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 2e-4


def test_a_folder_of_each_rank_s_own(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features.Shard, "is_whole", lambda _: False)  # what another machine wrote is not here
    with pytest.raises(OutputError, match="is not the same folder for all processes; put the cache where all see it"):
        encode(cache)


def shards(cache: Cache) -> dict[str, tuple[int, int]]:
    found = (cache.directory / "features").rglob("*")
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in found if p.is_file()}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five images a shard, two in a batch."""
    monkeypatch.setattr(features, "SHARD_BYTES", 5 * 17 * 128 * 4 + 3)
    monkeypatch.setattr(features, "BATCH", 2)
    return


@pytest.mark.parametrize(("stored", "relative"), [("fp32", 1e-5), ("fp16", 2**-11), ("bf16", 2**-8)])
@pytest.mark.usefixtures("small_pieces")
def test_the_states_of_each_image(cache: Cache, stored: str, relative: float) -> None:
    encoder, normalizer = parts(cache)
    made = encode(cache, stored=stored)
    for split in ("train", "validation"):
        reader = cache[split]
        dataset = FeatureDataset(made[split], reader)
        assert len(dataset) == len(reader) > 0
        for i in (0, len(reader) // 2, len(reader) - 1):
            with torch.no_grad():
                pixels = normalizer(torch.from_numpy(reader[i]["pixel_values"].copy())[None])
                expected = encoder.eval()(pixel_values=pixels).last_hidden_state
            item = dataset[i]
            found = encoder_features(torch.from_numpy(item["features"].copy())[None], torch.float32)
            torch.testing.assert_close(found, expected, rtol=relative, atol=2e-6)
            assert np.array_equal(item["labels"], reader[i]["labels"])
            assert not item["features"].flags.owndata, "a view into the file"


@pytest.mark.usefixtures("small_pieces")
def test_mapped_or_read_is_the_same(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    made = encode(cache)["train"]
    order = [7, 0, 7, made.count - 1, 4, 5]
    mapped = np.stack(made.gather(order))
    monkeypatch.setattr(features, "available_memory", lambda: 0)
    reading = replace(made)
    assert reading.reads
    assert not made.reads
    assert np.array_equal(np.stack(reading.gather(order)), mapped)


def test_training_is_that_with_the_encoder(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32: the same weights to rounding. fp16: the loss to 1e-3. And the encoder never runs in training."""
    ends, losses, captions = {}, {}, {}
    made = {"live": {"freeze_encoder": True}, "fp32": {}, "fp16": {}, "bf16": {}}
    for name, given in made.items():
        more = given or {"cache_features": True, "feature_precision": name}
        out = tmp_path / name
        finetune(FinetuneOptions(cache=cache.directory, output_dir=out, **QUICK, **more))
        ends[name] = load_file(out / "model.safetensors")
        rows = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
        losses[name] = next(row["eval_loss"] for row in rows if "eval_loss" in row)
        captions[name] = next(row["captions"] for row in rows if "eval_loss" in row)
    assert losses["fp32"] == pytest.approx(losses["live"], abs=1e-5)
    assert losses["fp16"] == pytest.approx(losses["live"], abs=1e-3)
    assert losses["bf16"] == pytest.approx(losses["live"], abs=1e-2)
    assert captions["fp32"] == captions["live"]
    for name, weight in ends["live"].items():
        torch.testing.assert_close(ends["fp32"][name], weight, rtol=0, atol=1e-4, msg=name)
    before = shards(cache)
    calls = []
    forward = ViTModel.forward
    monkeypatch.setattr(ViTModel, "forward", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k))
    again = FinetuneOptions(cache=cache.directory, output_dir=tmp_path / "again", **QUICK, cache_features=True, seed=1)
    finetune(replace(again, seed=42, lr=1e-3))
    assert shards(cache) == before, "computed once, whatever the learning rate"
    assert len(calls) == 3, "the self-check's alone"


@pytest.mark.usefixtures("small_pieces")
def test_stopped_and_gone_on_with(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished shards stay, the rest is computed, and the files are those of a run that was not stopped."""
    encoder, _ = parts(cache)
    whole = {k: v.paths for k, v in encode(cache).items()}
    expected = {p: p.read_bytes() for paths in whole.values() for p in paths}
    shutil.rmtree(cache.directory / "features")
    forward, calls = type(encoder).forward, []

    def stops(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:  # the first image, three batches of the first shard, and within the second
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(encoder), "forward", stops)
    with pytest.raises(RunError, match="run the same command again"):
        encode(cache)
    kept = shards(cache)
    assert len([name for name in kept if name.endswith(".bin")]) == 1
    folder = next((cache.directory / "features").iterdir())
    (folder / "killed.bin.123.tmp").write_bytes(b"half")  # as kill -9 leaves it
    first = next(p for p in expected if str(p) not in kept)
    first.write_bytes(b"cut short")
    encode(cache)
    after = shards(cache)
    assert {name: after[name] for name in kept} == kept
    assert {p: p.read_bytes() for p in expected} == expected
    assert not list(folder.glob("*.tmp"))


def test_what_changes_the_states_changes_their_place(cache: Cache) -> None:
    encoder, _ = parts(cache)
    folders = {next(iter(encode(cache).values())).paths[0].parent}
    folders.add(encode(cache, stored="fp16")["train"].paths[0].parent)
    with torch.no_grad():
        encoder.layers[0].mlp.fc1.weight[0, 0] += 1e-3
    folders.add(encode(cache, encoder)["train"].paths[0].parent)
    cache.manifest["pixels"]["mean"] = [0.4, 0.5, 0.5]
    folders.add(encode(cache, encoder)["train"].paths[0].parent)
    assert len(folders) == 4
    with torch.no_grad():
        encoder.pooler.dense.weight += 1.0  # random in most checkpoints, and not looked at
    assert encode(cache, encoder)["train"].paths[0].parent in folders
    order = picture_hashes(cache, "train")
    assert len(set(order)) == len(order) == len(cache["train"])


def test_states_outlive_a_rebuild(cache: Cache) -> None:
    """Other labels, same pictures: the new cache takes over what `preprocess` puts in its place."""
    encode(cache)
    before = shards(cache)
    rebuilt = cache.directory.with_name("cache.partial")
    shutil.copytree(cache.directory, rebuilt, ignore=shutil.ignore_patterns("features"))
    swap(rebuilt, cache.directory, cache.directory)
    assert not rebuilt.exists()
    encode(cache)
    assert shards(cache) == before


def test_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--unfreeze-last 2: --cache-features freezes all of the encoder"):
        FinetuneOptions(cache_features=True, unfreeze_last=2)
    with pytest.raises(InputError, match="--lora-targets both: --cache-features leaves the encoder as it is"):
        FinetuneOptions(cache_features=True, lora_rank=4)
    with pytest.raises(InputError, match="--feature-precision fp32: only applies with --cache-features"):
        FinetuneOptions(feature_precision="fp32")
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(
            OutputError, match=r"--cache-features: the encoder features of \d+ images take .* MB, but 0.0 MB are free"
        ):
            encode(cache)
    encoder, _ = parts(cache)
    with torch.no_grad():
        encoder.layernorm.bias += 1e5
    with pytest.raises(RunError, match=r"--feature-precision fp16: .* use bf16"):
        encode(cache, encoder, "fp16")
    assert not list(cache.directory.rglob("*.bin"))
    encode(cache, encoder, "bf16")
    (cache.directory / "index" / "000000.arrow").write_bytes(b"")
    with pytest.raises(InputError, match="its index is damaged"):
        encode(cache)
