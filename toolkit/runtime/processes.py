"""Running tasks in processes of this machine: a multiprocess `Dataset.map`, under a process of its own.

    command -> foreman, which calls `Dataset.map` -> a worker for each share of the tasks

The foreman and its workers are a process group. The command waits for the foreman's answer, which is what a task
raised, or nothing; no answer means that a worker died. In every case, and after Ctrl-C, the command ends by killing the
group, so that nothing is left running or waiting. Should the command itself be killed, the foreman sees its pipe
close, and kills the group. Killing loses no more than unfinished tasks, as each finishes its files by rename.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import RunError
from toolkit.runtime.progress import Progress

Task = dict[str, Any]
Function = Callable[[Task], Any]  # picklable; writes its own output and finishes it by rename
Done = Callable[[], int]  # how much is finished, in the unit of the progress, told from the output itself


@dataclass(frozen=True)
class Resources:
    """What an engine may use for its tasks.

    Attributes:
        workers: processes of this machine; with Ray the cores that it takes where it is started here.
        address: of a running Ray cluster, `host:port` or `auto`; None starts Ray here, for as long as the tasks take.
        cpus: cores for each of Ray's workers, or all of the largest node's; one where it has a GPU.
        gpus: one GPU for each of Ray's workers, where there are any.
        shared: folders that each node of a cluster must see.
    """

    workers: int
    address: str | None = None
    cpus: int = 1
    gpus: bool = False
    shared: tuple[Path, ...] = ()


def run_local(function: Function, tasks: list[Task], resources: Resources, progress: Progress, done: Done) -> None:
    """Runs `function` on each task; what a task raises is raised here, and ends the others.

    Workers are given contiguous shares of the tasks; a single worker is this process.

    Raises:
        RunError: a worker died. What was finished stays.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    workers = min(resources.workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            function(task)
            progress.update(done() - progress.count)
        return
    import datasets  # noqa: F401 - once, and not in each worker
    import multiprocess  # what `datasets` makes its pools with

    multiprocess.util.get_temp_dir()  # removed when this process ends, as those that are killed can't
    reader, writer = multiprocess.Pipe(duplex=False)
    foreman = multiprocess.Process(target=_foreman, args=(writer, function, tasks, workers))
    foreman.start()
    writer.close()
    try:
        while foreman.is_alive() and not reader.poll(0.5):
            progress.update(done() - progress.count)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(foreman.pid, signal.SIGKILL)
        foreman.kill()  # it may not have made its group yet
        foreman.join()
        progress.update(done() - progress.count)
    try:
        raised = reader.recv_bytes()
    except EOFError:
        raise RunError(
            "a worker process died, most often for lack of memory; run the same command again to go on from the "
            "finished shards, with a lower --num-workers if it happens again."
        ) from None
    if raised:
        raise pickle.loads(raised)


def attempt(function: Function, task: Task) -> bytes:
    """Runs a task in a worker: b"", or what it raised, pickled, with a note of where."""
    try:
        function(task)
    except Exception as error:
        error.add_note(traceback.format_exc())  # which would stay in the worker
        return pickled(error)
    return b""


def pickled(error: Exception) -> bytes:
    """An error for another process; one that can't be pickled becomes a RuntimeError that tells of it."""
    with suppress(Exception):
        data = pickle.dumps(error)
        pickle.loads(data)
        return data
    return pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))


# ---- the foreman and its workers ------------------------------------------------------------------------------------

# Where workers wait for each other when their shares are done; broken by a task that fails, which ends the others. In
# the pool's queue they would wait with its lock in hand, and one that is killed there leaves a pool that can't end.
_barrier: threading.Barrier | None = None


def _foreman(answer: Any, function: Function, tasks: list[Task], workers: int) -> None:
    import datasets
    import multiprocess

    global _barrier
    os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, args=(multiprocess.parent_process(),), daemon=True).start()
    datasets.disable_progress_bars()
    _barrier = multiprocess.Barrier(workers)
    try:
        results = datasets.Dataset.from_list(tasks).map(
            _Share(function),
            batched=True,
            batch_size=None,  # a worker's whole share
            num_proc=workers,
            remove_columns=list(tasks[0]),
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint="tasks",  # else `map` pickles and hashes the function to make one
        )
        answer.send_bytes(next(filter(None, results["error"]), b""))
    except (RuntimeError, EOFError, ConnectionError, multiprocess.ProcessError):
        return  # `map` lost a worker, or the pool its helper process: tasks' own errors are in the results
    except Exception as error:
        answer.send_bytes(pickled(error))


def _end_with_parent(parent: Any) -> None:
    parent.join()
    os.killpg(0, signal.SIGKILL)


class _Share:
    """What `Dataset.map` calls once in each worker: {"i": [0, 1], ...} -> {"error": [b""]}."""

    def __init__(self, function: Function) -> None:
        self.function = function

    def __call__(self, tasks: dict[str, list[Any]]) -> dict[str, list[bytes]]:
        error = b""
        for values in zip(*tasks.values(), strict=True):
            if error or (_barrier is not None and _barrier.broken):
                break
            error = attempt(self.function, dict(zip(tasks, values, strict=True)))
        if _barrier is not None:
            if error:
                _barrier.abort()
            with suppress(threading.BrokenBarrierError):
                _barrier.wait()
        return {"error": [error]}
