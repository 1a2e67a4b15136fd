"""Running a function over many tasks: here with processes, or where the command says, on Ray."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.errors import RunError
from toolkit.runtime.progress import Progress
from toolkit.runtime.ray_cluster import Task, run_ray

# A fork while another thread holds a lock of tqdm's or of stderr's leaves the child with a lock that nobody will ever
# release. The watcher writes only under this lock, and no fork happens while it is held.
_writing = threading.Lock()
_parent: tuple[int, int] | None = None  # (process, thread) whose forks are workers now
_forking = 0  # the thread that forks


def _before() -> None:
    global _forking
    _writing.acquire()
    _forking = threading.get_ident()


def _in_child() -> None:
    _writing.release()
    if _parent is not None and os.getppid() == _parent[0]:
        _be_a_worker(*_parent)


os.register_at_fork(before=_before, after_in_parent=_writing.release, after_in_child=_in_child)


def _be_a_worker(parent: int, thread: int) -> None:
    """Ctrl-C is the parent's business, which ends its workers; and when it is killed, so are they.

    A pool's worker would otherwise wait for its next task for ever, holding the lock of the killed run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if _forking != thread:  # the kernel would kill us with the thread that forked us, one of the pool's own
            raise AttributeError
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, Linux
    except (AttributeError, OSError):
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


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
    """Runs a function on a worker's whole share of the tasks; the function that `Dataset.map` calls once per worker.

    A worker whose share is done waits here for the others. In the pool's queue it would wait with the queue's lock in
    its hand, and a worker that is killed with it leaves a pool that can't even be ended.
    """

    def __init__(self, function: Callable[[Task], Any], num_workers: int) -> None:
        self.function = function
        self.num_workers = num_workers

    def __call__(self, tasks: dict[str, list[Any]], rank: int | None) -> dict[str, list[Any]]:
        state = _states if _states is not None else bytearray(self.num_workers)
        rank = rank or 0
        try:
            for values in zip(*tasks.values(), strict=True):
                if FAILED in state[: self.num_workers]:  # the run is lost: end it now, not after this share
                    break
                self.function(dict(zip(tasks, values, strict=True)))
            state[rank] = DONE
        except BaseException:
            state[rank] = FAILED
            raise
        while _states is not None and RUNNING in state[: self.num_workers]:
            time.sleep(0.02)
        return {}


def _was_stopped(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: ending its pool, `map` waits for results that no longer come, and says so instead."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _was_stopped(error.__context__))


def run(
    options: Any,
    function: Callable[[Task], Any],
    tasks: list[Task],
    progress: Progress,
    done: Callable[[], int],
    shared: Sequence[Path] = (),
    cpus: int = 1,
    gpus: bool = False,
) -> None:
    """Runs `function` on each task where `options.engine` says: `run_local` or `run_ray`, which tell what they raise."""
    if options.engine == "local":
        run_local(function, tasks, options.num_workers, progress, done)
    else:
        with _watching(progress, done):
            run_ray(function, tasks, options.num_workers, options.ray_address, cpus, gpus, shared)


RUNNING, DONE, FAILED = 0, 1, 2
_states: mmap.mmap | None = None  # of the workers, one byte each, in memory that forks share


def run_local(
    function: Callable[[Task], Any], tasks: list[Task], num_workers: int, progress: Progress, done: Callable[[], int]
) -> None:
    """Runs `function` on each task in `num_workers` processes; what it made stands on disk.

    The processes are those of `datasets.Dataset.map`, which notices a dead worker within a second. Tasks are dealt
    out in contiguous shares. What a task raises is raised here, and ends the others.

    Args:
        function: picklable; writes its own output and finishes it by rename.
        done: how much is finished, in the unit of `progress`, read off the output itself.

    Raises:
        RunError: a worker died. What was finished stays.
    """
    import datasets
    import multiprocess  # what `datasets` makes its pools with

    global _parent, _states
    if not tasks:
        return
    num_workers = min(num_workers, len(tasks))
    bars = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _parent = (os.getpid(), threading.get_ident())
    _states = mmap.mmap(-1, num_workers) if num_workers > 1 else None
    try:
        with _watching(progress, done):
            datasets.Dataset.from_list(tasks).map(
                _Worker(function, num_workers),
                batched=True,
                batch_size=None,  # a worker's whole share
                with_rank=True,
                remove_columns=list(tasks[0]),
                num_proc=num_workers if num_workers > 1 else None,  # 1 would start a pool of one
                keep_in_memory=True,
                load_from_cache_file=False,
                new_fingerprint="tasks",  # else `map` pickles and hashes the function to make one
            )
    except (RuntimeError, EOFError, ConnectionError, multiprocess.ProcessError) as error:
        if _was_stopped(error):
            raise KeyboardInterrupt from None
        if isinstance(error, RuntimeError) and "abruptly died" not in str(error):
            raise
        # Otherwise it was the pool's own helper process that died.
        raise RunError(
            "a worker process died, most often for lack of memory; run the same command again to go on from the "
            "finished shards, with a lower --num-workers if it happens again."
        ) from None
    finally:
        _parent = _states = None
        if not bars:
            datasets.enable_progress_bars()
