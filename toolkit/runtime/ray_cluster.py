"""Running tasks on a Ray cluster: Ray Data gives them to long-lived actors.

    command -> driver (this file, a process of its own) -> an actor a core, or a GPU -> shards on shared storage

Only tasks, some hundred bytes each, and what they raise travel through Ray. What a task makes goes to storage that all
nodes share, finished by rename; so a shard that a lost node had begun is simply made again elsewhere. The driver is a
process of its own because Ray prints to stdout, takes over signals, and ends its process where it can't go on.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import cached_property
from pathlib import Path
from typing import IO

import pyarrow as pa

from toolkit.errors import InputError, RunError
from toolkit.runtime.processes import Done, Function, Resources, Task, attempt, pickled
from toolkit.runtime.progress import Progress

RESTARTS = 4  # of one actor: a shard that kills its worker each time ends the run after five
OBJECT_STORE = 100 * 2**20  # bytes, where we start Ray: nothing large travels, and it would take a third of the memory
RAY_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
PATIENCE = 30  # seconds for Ray to end


def run_ray(function: Function, tasks: list[Task], resources: Resources, progress: Progress, done: Done) -> None:
    """As `run_local`, in the actors of a cluster. A task whose worker or node died is tried again elsewhere.

    Args:
        function: may be called twice on a task, and by two workers at once where a node only seemed dead. Actors keep
            it: what its first call loads, stays.

    Raises:
        InputError: no cluster answers at the address.
        RunError: a shard has lost its worker too often, or a node does not see the folders. What was finished stays.
    """
    if not tasks:
        return
    environment = {**RAY_ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    command = [sys.executable, "-m", "toolkit.runtime.ray_cluster", str(os.getpid())]
    with tempfile.TemporaryFile() as work, tempfile.TemporaryFile() as log:
        # Pickled twice: modules that function and tasks come from are the actors' business, not the driver's.
        pickle.dump((pickle.dumps(function), [pickle.dumps(task) for task in tasks], resources, Path.cwd()), work)
        work.seek(0)
        driver = subprocess.Popen(command, stdin=work, stdout=subprocess.PIPE, stderr=log, env=environment)
        try:
            answer = None
            while answer is None:
                try:
                    answer, _ = driver.communicate(timeout=0.5)
                except subprocess.TimeoutExpired:
                    progress.update(done() - progress.count)
        finally:
            _end(driver)
            progress.update(done() - progress.count)
        if not answer:
            raise RunError(
                f"--engine ray: Ray failed ({_last_line(log)}); run the same command again to go on from the finished "
                "shards."
            )
    error = pickle.loads(answer)
    if error is not None:
        raise error


def _end(driver: subprocess.Popen[bytes]) -> None:
    driver.terminate()
    try:
        driver.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


# ---- the driver -----------------------------------------------------------------------------------------------------


def _drive(function: bytes, tasks: list[bytes], resources: Resources, folder: Path) -> None:
    import ray
    import ray.data

    _connect(resources)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpu = 1 if resources.gpus and any(node.get("GPU", 0) >= 1 for node in nodes) else 0
    cpus = 1 if gpu else max(1, min(resources.cpus, int(max(node.get("CPU", 0) for node in nodes))))
    room = sum(int(node.get("GPU", 0) if gpu else node.get("CPU", 0) // cpus) for node in nodes)
    size = max(1, min(room, len(tasks)))
    rows = [{"task": task} for task in tasks]
    errors = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(function, (folder, *resources.shared)),
        compute=ray.data.ActorPoolStrategy(
            min_size=1,  # actors without work leave, so that those of a lost node find room to begin again
            initial_size=size,
            max_size=len(tasks) if resources.address else size,  # a cluster may grow meanwhile
            max_tasks_in_flight_per_actor=2,
        ),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=cpus,
        num_gpus=gpu,
        # Each second without an answer of a node that is gone counts as a try, hence no limit of those.
        ray_remote_args_fn=lambda: {"max_restarts": RESTARTS, "max_task_retries": -1},
    )
    try:
        for batch in errors.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for raised in filter(None, pa.table(batch)["error"].to_pylist()):
                raise pickle.loads(raised)
    except ray.exceptions.RayActorError:
        raise RunError(
            f"--engine ray: a worker died {RESTARTS + 1} times, most often for lack of memory; run the same command again "
            "to go on from the finished shards."
        ) from None


def _connect(resources: Resources) -> None:
    """To the cluster at the address, or to one that is started here."""
    import ray

    address = resources.address
    if address is None:
        ray.init(
            "local",
            log_to_driver=False,
            num_cpus=resources.workers,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
        )
        return
    try:
        host, _, port = address.rpartition(":")
        if host:  # else Ray would go on trying for minutes
            socket.create_connection((host, int(port)), PATIENCE).close()
        ray.init(address, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"--ray-address {address}: no cluster to work on ({reason}); see `ray status` on one of its nodes, and set "
            "RAY_AUTH_MODE=token for a cluster that was started with a token."
        ) from None


class _Actor:
    """Column `task`, binary (n) -> column `error`, binary (n), as `attempt` gives it."""

    def __init__(self, function: bytes, folders: tuple[Path, ...]) -> None:
        self.pickled, self.folders = function, folders
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the actors are the parallelism

    @cached_property
    def function(self) -> Function:
        return pickle.loads(self.pickled)

    def __call__(self, tasks: pa.Table) -> pa.Table:
        errors = [attempt(self._run, {"pickled": task}) for task in tasks["task"].to_pylist()]
        return pa.table({"error": pa.array(errors, pa.binary())})

    def _run(self, task: Task) -> None:
        for path in self.folders:  # a node without the images would call them all missing
            if not path.is_dir():
                raise RunError(
                    f"--engine ray: {path} is not there on node {socket.gethostname()}; put images and output on storage "
                    "that all nodes share under the same name, and run the same command again."
                )
        os.chdir(self.folders[0])  # a relative name is meant from where the command was typed
        self.function(pickle.loads(task["pickled"]))


def _main(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's business, which ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    work = pickle.load(sys.stdin.buffer)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what Ray prints
    answer = pickle.dumps(None)
    try:
        _drive(*work)
    except Exception as error:
        answer = pickled(error)
    with answers:
        answers.write(answer)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    # Actors know the module by its own name, not as __main__.
    from toolkit.runtime.ray_cluster import _main as main

    main(int(sys.argv[1]))
