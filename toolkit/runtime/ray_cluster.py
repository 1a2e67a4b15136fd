"""Running a function over many tasks on a Ray cluster: Ray Data gives them to long-lived actors.

    command -> driver (this file, a process of its own) -> an actor a core, or a GPU -> shards on shared storage

Only tasks, some hundred bytes each, and what they raise travel through Ray. What a task makes goes to storage that all
nodes share, finished by rename; so a shard that a lost node had begun is simply made again elsewhere. The driver is a
process of its own because Ray prints to stdout, takes over signals, and ends its process where it can't go on.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from toolkit.errors import InputError, RunError

Task = dict[str, Any]

RESTARTS = 4  # of one actor: a shard that kills its worker each time ends the run after five
OBJECT_STORE = 100 * 2**20  # bytes, where we start Ray: nothing large travels, and it would take a third of the memory
RAY_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
PATIENCE = 30  # seconds for Ray to end


def run_ray(
    function: Callable[[Task], Any],
    tasks: list[Task],
    num_workers: int,
    address: str | None = None,
    cpus: int = 1,
    gpus: bool = False,
    shared: Sequence[Path] = (),
) -> None:
    """Runs `function` on each task in the actors of a Ray cluster; what it made stands on disk.

    What a task raises is raised here, and ends the others. A task whose worker or node died is tried again elsewhere.

    Args:
        function: picklable; writes its own output and finishes it by rename, as it may be called twice on a task, and
            by two workers at once where a node only seemed dead. Actors keep it: what its first call loads, stays.
        num_workers: cores that Ray takes where it is started here; of a cluster it takes what is there.
        address: of a running cluster, `host:port` or `auto`; None starts Ray here, for as long as this takes.
        cpus: cores for each actor, or all of the largest node's; one where it has a GPU.
        gpus: one GPU for each actor, where there are any.
        shared: folders that each node must see.

    Raises:
        InputError: no cluster answers at `address`.
        RunError: a shard has lost its worker too often, or a node does not see the folders. What was finished stays.
    """
    if not tasks:
        return
    work = {
        "function": pickle.dumps(function),  # its modules are the actors' business
        "tasks": [pickle.dumps(task) for task in tasks],
        "num_workers": num_workers,
        "address": address,
        "cpus": cpus,
        "gpus": gpus,
        "shared": [Path.cwd(), *shared],
    }
    environment = {**RAY_ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "toolkit.runtime.ray_cluster", str(os.getpid())]
        driver = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=False
        )
        try:
            answer, _ = driver.communicate(pickle.dumps(work))
        finally:
            _end(driver)
        error = pickle.loads(answer) if answer else RunError(
            f"--engine ray: Ray failed ({_last_line(log)}); run the same command again to go on from the finished shards."
        )  # fmt: skip
    if error is not None:
        raise error


def _end(driver: subprocess.Popen[bytes]) -> None:
    if driver.poll() is None:
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


def _drive(
    function: bytes,
    tasks: list[bytes],
    num_workers: int,
    address: str | None,
    cpus: int,
    gpus: bool,
    shared: list[Path],
) -> None:
    import ray
    import ray.data

    own: dict[str, Any] = {"num_cpus": num_workers, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        host, _, port = (address or "").rpartition(":")
        if host:  # else Ray would go on trying for minutes
            socket.create_connection((host, int(port)), PATIENCE).close()
        ray.init(address or "local", log_to_driver=False, **({} if address else own))
    except (OSError, RuntimeError, ValueError) as error:
        if not address:
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"--ray-address {address}: no cluster to work on ({reason}); see `ray status` on one of its nodes, and set "
            "RAY_AUTH_MODE=token for a cluster that was started with a token."
        ) from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpu = 1 if gpus and any(node.get("GPU", 0) >= 1 for node in nodes) else 0
    cpus = 1 if gpu else max(1, min(cpus, int(max(node.get("CPU", 0) for node in nodes))))
    room = sum(int(node.get("GPU", 0) if gpu else node.get("CPU", 0) // cpus) for node in nodes)
    size = max(1, min(room, len(tasks)))
    rows = [{"task": task} for task in tasks]
    errors = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_args=(function, shared),
        compute=ray.data.ActorPoolStrategy(
            min_size=1,  # actors without work leave, so that those of a lost node find room to begin again
            initial_size=size,
            max_size=len(tasks) if address else size,  # a cluster may grow meanwhile
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


class _Worker:
    """An actor."""

    def __init__(self, function: bytes, shared: Sequence[Path]) -> None:
        self.pickled, self.shared = function, shared
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the actors are the parallelism

    @cached_property
    def function(self) -> Callable[[Task], Any]:
        return pickle.loads(self.pickled)

    def __call__(self, tasks: pa.Table) -> pa.Table:
        """Column `task`, binary (n) -> column `error`, binary (n); empty where all went well."""
        return pa.table({"error": pa.array([self._run(task) for task in tasks["task"].to_pylist()], pa.binary())})

    def _run(self, task: bytes) -> bytes:
        try:
            self._check_shared()
            self.function(pickle.loads(task))
            return b""
        except Exception as error:
            error.add_note(traceback.format_exc())  # which would stay here
            return _pickled(error)

    def _check_shared(self) -> None:
        """A node without the images would call them all missing."""
        for path in self.shared:
            if not path.is_dir():
                raise RunError(
                    f"--engine ray: {path} is not there on node {socket.gethostname()}; put images and output on storage "
                    "that all nodes share under the same name, and run the same command again."
                )
        os.chdir(self.shared[0])  # a relative name is meant from where the command was typed


def _pickled(error: Exception) -> bytes:
    with suppress(Exception):
        data = pickle.dumps(error)
        pickle.loads(data)
        return data
    return pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))


def _main(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's business, which ends this one
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, Linux: when the command is killed
    if os.getppid() != parent:
        sys.exit(1)
    work = pickle.load(sys.stdin.buffer)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what Ray prints
    error: bytes = pickle.dumps(None)
    try:
        _drive(**work)
    except Exception as raised:
        error = _pickled(raised)
    with answers:
        answers.write(error)


if __name__ == "__main__":
    # Actors know the module by its own name, not as __main__.
    from toolkit.runtime.ray_cluster import _main as main

    main(int(sys.argv[1]))
