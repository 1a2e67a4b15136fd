"""The Ray engine: the bytes of the local one, whatever dies on the way; one sentence where it can't go on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.options import PreprocessOptions
from toolkit.ray_engine import run_ray

pytest.importorskip("ray", reason="needs Ray: pip install 'toolkit[ray]'")


class Touch:
    """Writes a file per task with what loaded it and how often it was called; what else depends on the test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0

    def __call__(self, task: dict[str, Any]) -> None:
        self.calls += 1
        if task.get("fail"):
            raise OSError(28, "No space left on device")
        if task.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(task.get("sleep", 0))
        (self.folder / task["name"]).write_text(f"{os.getpid()} {self.calls} {os.getcwd()}")


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    run_ray(Touch(tmp_path), [], 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "engine", "words"),
    [
        ("auto", "local", "--ray-address auto: means something with --engine ray alone"),
        ("ray://there:10001", "ray", "is of Ray's client"),
    ],
)
def test_addresses_that_mean_nothing(address: str, engine: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        PreprocessOptions(engine=engine, ray_address=address)


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.options.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--engine ray: Ray is not installed; pip install 'toolkit\[ray\]'"):
        PreprocessOptions(engine="ray")


def test_no_cluster_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--ray-address 127.0.0.1:1: no cluster to work on \(.*refused\)"):
        run_ray(Touch(tmp_path), [{"name": "a"}], 1, "127.0.0.1:1")
