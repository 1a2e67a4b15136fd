"""Shared by all tests: a small drawn data set, its cache, and a model trained on it for a few steps.

They are made once a session, also where several processes share the tests (`pytest -n 2`), and are to be read only.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may wait for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")  # --precision auto means the same on every machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are so small that a second thread only gets in the way
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in a shell's background: commands under test would not see Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _signals_stay_pytest_s() -> Iterator[None]:
    """`cli.main`, called in this process, takes its signals otherwise."""
    from toolkit.runtime import ending

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ending, "watch", lambda: None)
        patch.setattr(ending, "over", lambda: None)
        yield


@pytest.fixture(autouse=True)
def _not_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--quiet` of a command that a test calls in this process is that test's alone."""
    from toolkit.runtime import progress

    monkeypatch.setattr(progress, "quiet", False)


@pytest.fixture(scope="session", autouse=True)
def _user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a build keeps for the next one stays out of the user's own cache folder; the hub's cache is where it was."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", os.environ.get("HF_HOME", os.path.join(user_cache, "huggingface")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes `name` in a folder that all test processes of this session share, if none of them has made it yet."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def made_once(name: str, make: Callable[[Path], object]) -> Path:
        path = base / "shared" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        finished = base / f"{name.replace('/', '-')}.finished"
        with FileLock(finished.with_suffix(".lock")):
            if not finished.exists():
                make(path)
                finished.touch()
        return path

    return made_once


@pytest.fixture(scope="session")
def sample_dir(made_once: Callable) -> Path:
    """48 drawn scenes with five captions each: captions.txt, Images/, scenes.jsonl, split lists."""
    from toolkit.data.drawing import draw_sample

    return made_once("sample/data", lambda directory: draw_sample(directory, images=48, seed=7))


@pytest.fixture(scope="session")
def cache_dir(sample_dir: Path, made_once: Callable) -> Path:
    """The cache of `sample_dir` with the tiny preset."""
    from toolkit.commands.preprocess import preprocess
    from toolkit.options import PreprocessOptions

    options = PreprocessOptions(
        annotations=sample_dir / "captions.txt", images=sample_dir / "Images", preset="tiny", num_workers=1
    )
    return made_once("cache/dataset", lambda out: preprocess(replace(options, out=out)))


@pytest.fixture(scope="session")
def model_dir(cache_dir: Path, made_once: Callable) -> Path:
    """A captioner of the tiny preset after two epochs: it knows nothing, but everything is in its place."""
    from toolkit.commands.finetune import finetune
    from toolkit.options import FinetuneOptions

    options = FinetuneOptions(cache=cache_dir, epochs=2, batch_size=8)
    return made_once("trained/model", lambda out: finetune(replace(options, output_dir=out)))


@pytest.fixture(scope="session")
def hostile_dir(made_once: Callable) -> Path:
    """captions.txt and Images/ with 12 good images and the 200 of tests/hostile.py; to be read only."""
    import hostile

    return made_once("hostile/data", hostile.make)


@pytest.fixture
def pictures(sample_dir: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Makes a folder with so many images, 0.jpg and so on, and bad.jpg, which can't be read."""

    def pictures(number: int) -> Path:
        folder = tmp_path / "pictures"
        folder.mkdir()
        for i, path in enumerate(sorted((sample_dir / "Images").glob("*.jpg"))[:number]):
            shutil.copy(path, folder / f"{i}.jpg")
        (folder / "bad.jpg").write_text("no picture")
        return folder

    return pictures


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preprocess makes several shards of a handful of images, with processors that need no torch."""
    from preprocessing import SHARD_ROWS, stored_processors

    import toolkit.cache.staging
    import toolkit.commands.preprocess

    monkeypatch.setattr(toolkit.cache.staging, "SHARD_ROWS", SHARD_ROWS)
    monkeypatch.setattr(toolkit.commands.preprocess, "fetch_processors", stored_processors)


@pytest.fixture(scope="session")
def three_updates(cache_dir: Path) -> Callable[..., None]:
    """Fine-tunes into a folder, for three updates if nothing else is said."""

    def three_updates(out: Path, **more: Any) -> None:
        from toolkit.commands.finetune import finetune
        from toolkit.options import FinetuneOptions
        from toolkit.options.fields import from_flat

        given = {"cache": cache_dir, "output_dir": out, "max_steps": 3, "batch_size": 8, "num_beams": 1}
        finetune(from_flat(FinetuneOptions, {**given, **more}))

    return three_updates
