"""Tasks in processes: all done once, errors raised, dead workers noticed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import RunError
from toolkit.runtime.processes import Resources, run_local
from toolkit.runtime.progress import Progress


class Touch:
    """Writes a file per task; what else it does depends on the test."""

    def __init__(self, folder: Path, slow: int = -1, fail: int = -1) -> None:
        self.folder, self.slow, self.fail = folder, slow, fail

    def __call__(self, task: dict[str, Any]) -> None:
        if task["i"] == self.fail:
            raise OSError(28, "No space left on device")
        if task["i"] >= self.slow >= 0:
            time.sleep(0.2)
        (self.folder / f"{task['i']}").write_text(f"{os.getpid()} {task['name']}")


def run(function: Any, number: int, num_workers: int) -> None:
    tasks = [{"i": i, "name": f"task {i}"} for i in range(number)]
    with Progress("test", number) as progress:
        run_local(function, tasks, Resources(num_workers), progress, lambda: 0)


@pytest.mark.parametrize(("number", "num_workers"), [(0, 2), (1, 4), (5, 1), (5, 2), (3, 8)])
def test_each_task_once(tmp_path: Path, number: int, num_workers: int) -> None:
    run(Touch(tmp_path), number, num_workers)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert sorted(written) == sorted(str(i) for i in range(number))
    assert all(text.endswith(f" task {name}") for name, text in written.items())
    here = {int(text.split()[0]) for text in written.values()} == {os.getpid()}
    assert here == (min(number, num_workers) == 1)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_is_raised_and_ends_the_others(tmp_path: Path, num_workers: int) -> None:
    with pytest.raises(OSError, match="No space left") as error:
        run(Touch(tmp_path, slow=10, fail=0), 30, num_workers)
    assert error.value.errno == 28
    assert len(list(tmp_path.iterdir())) < 15


@pytest.mark.parametrize("idle", [False, True])
def test_a_dead_worker_is_noticed(tmp_path: Path, idle: bool) -> None:
    """A busy one, and one that has done its share and waits for the other."""

    def kill() -> None:
        name = "4" if idle else "5"
        while not (tmp_path / name).exists() or not (tmp_path / name).read_text():
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(int((tmp_path / name).read_text().split()[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    began = time.monotonic()
    with pytest.raises(RunError, match="a worker process died"):
        run(Touch(tmp_path, slow=5), 10, 2)
    killer.join()
    assert time.monotonic() - began < 6
