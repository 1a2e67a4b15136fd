"""Shared pieces: a small drawn data set, its cache, and a model trained on it for a few steps. Made once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may wait for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are so small that a second thread only gets in the way


@pytest.fixture(scope="session", autouse=True)
def _signals_stay_pytest_s() -> Iterator[None]:
    """`cli.main`, called in this process, takes its signals otherwise."""
    from toolkit.runtime import ending

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ending, "watch", lambda: None)
        patch.setattr(ending, "over", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a build keeps for the next one stays out of the user's own cache folder; the hub's cache is where it was."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", os.environ.get("HF_HOME", os.path.join(user_cache, "huggingface")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 drawn scenes with five captions each: captions.txt, Images/, scenes.jsonl, split lists."""
    from toolkit.data.drawing import draw_sample

    directory = tmp_path_factory.mktemp("sample") / "data"
    draw_sample(directory, images=48, seed=7)
    return directory


@pytest.fixture(scope="session")
def cache_dir(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of `sample_dir` with the tiny preset."""
    from toolkit.commands.preprocess import preprocess
    from toolkit.options import PreprocessOptions

    out = tmp_path_factory.mktemp("cache") / "dataset"
    preprocess(
        PreprocessOptions(
            annotations=sample_dir / "captions.txt", images=sample_dir / "Images", out=out, preset="tiny", num_workers=1
        )
    )
    return out


@pytest.fixture(scope="session")
def model_dir(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner of the tiny preset after two epochs: it knows nothing, but everything is in its place."""
    from toolkit.commands.finetune import finetune
    from toolkit.options import FinetuneOptions

    out = tmp_path_factory.mktemp("trained") / "model"
    finetune(FinetuneOptions(cache=cache_dir, output_dir=out, epochs=2, batch_size=8))
    return out


@pytest.fixture(scope="session")
def hostile_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """captions.txt and Images/ with 12 good images and the 200 of tests/hostile.py; to be read only."""
    import hostile

    directory = tmp_path_factory.mktemp("hostile") / "data"
    hostile.make(directory)
    return directory
