"""Running a function over many tasks: here with processes. One signature, so that other engines are peers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from toolkit.errors import RunError
from toolkit.progress import Progress

Task = dict[str, Any]

# A fork while another thread holds a lock of tqdm's or of stderr's leaves the child with a lock that nobody will ever
# release. The watcher writes only under this lock, and no fork happens while it is held.
_writing = threading.Lock()
os.register_at_fork(before=_writing.acquire, after_in_parent=_writing.release, after_in_child=_writing.release)


@contextmanager
def _watching(progress: Progress, done: Callable[[], int]) -> Any:
    """Keeps `progress` at `done()`, looked up twice a second."""
    stop = threading.Event()

    def update() -> None:
        with _writing:
            progress.update(done() - progress.count)

    def watch() -> None:
        while not stop.wait(0.5):
            update()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        update()


class _Worker:
    """Makes Ctrl-C the parent's business: it ends the workers, so they need not each print a traceback."""

    def __init__(self, function: Callable[[Task], Any]) -> None:
        self.function = function
        self.parent = os.getpid()

    def __call__(self, task: Task) -> Task:
        if os.getpid() != self.parent:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.function(task)
        return {}


def run_local(
    function: Callable[[Task], Any], tasks: list[Task], num_workers: int, progress: Progress, done: Callable[[], int]
) -> None:
    """Runs `function` on each task in `num_workers` processes; what it made stands on disk.

    The processes are those of `datasets.Dataset.map`, which notices a dead worker within a second. Tasks are dealt
    out in contiguous runs.

    Args:
        function: picklable; writes its own output and finishes it by rename.
        done: how much is finished, in the unit of `progress`, read off the output itself.

    Raises:
        RunError: a worker died. What was finished stays.
    """
    import datasets

    if not tasks:
        return
    bars = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    try:
        with _watching(progress, done):
            datasets.Dataset.from_list(tasks).map(
                _Worker(function),
                num_proc=num_workers if num_workers > 1 and len(tasks) > 1 else None,  # 1 would start a pool of one
                keep_in_memory=True,
                load_from_cache_file=False,
                new_fingerprint="tasks",  # else `map` pickles and hashes the function to make one
            )
    except RuntimeError as error:
        if "abruptly died" not in str(error):
            raise
        raise RunError(
            "a worker process died, most often for lack of memory; run the same command again to go on from the "
            "finished pieces, with a lower --num-workers if it happens again."
        ) from None
    finally:
        if not bars:
            datasets.enable_progress_bars()
