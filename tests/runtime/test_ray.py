"""The Ray engine: the bytes of the local one, whatever dies on the way; one sentence where it can't go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from preprocessing import DataSet, stored_processors, tree
from waiting import wait_for

import toolkit.cache.staging
import toolkit.captioning.shards
import toolkit.commands.preprocess
from toolkit.commands.batch_caption import batch_caption
from toolkit.errors import InputError, RunError
from toolkit.options import BatchCaptionOptions, PreprocessOptions
from toolkit.runtime.processes import Resources
from toolkit.runtime.progress import Progress
from toolkit.runtime.ray_cluster import run_ray

pytest.importorskip("ray", reason="needs Ray: pip install 'captioning-toolkit[ray]'")


class Touch:
    """Writes a file per task that says who wrote it, as its how manieth; what else depends on the task."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0

    def __call__(self, task: dict[str, Any]) -> None:
        self.calls += 1
        if task.get("fail"):
            raise OSError(28, "No space left on device")
        if task.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(task.get("sleep", 0))
        (self.folder / task["name"]).write_text(f"{os.getpid()} {self.calls}")


def run(function: Touch, tasks: list[dict[str, Any]], workers: int, **resources: Any) -> None:
    with Progress("test", len(tasks)) as progress:
        run_ray(function, tasks, Resources(workers, **resources), progress, lambda: 0)


def ray_processes() -> list[str]:
    """Command lines of all processes of Ray that this user runs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "raylet/raylet " in line or "gcs_server " in line or "toolkit.runtime.ray_cluster" in line:
            found.append(line)
    return found


# ---- what needs no cluster ------------------------------------------------------------------------------------------


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    run(Touch(tmp_path), [], 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "engine", "words"),
    [
        ("auto", "local", "--ray-address auto: only applies with --engine ray"),
        ("ray://there:10001", "ray", "is an address of Ray's client"),
    ],
)
def test_addresses_that_mean_nothing(address: str, engine: str, words: str) -> None:
    for options in (PreprocessOptions, BatchCaptionOptions):
        with pytest.raises(InputError, match=words):
            options(engine=engine, ray_address=address)


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.options.fields.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"--engine ray: Ray is not installed; pip install 'captioning-toolkit\[ray\]'"
    ):
        PreprocessOptions(engine="ray")


def test_no_cluster_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--ray-address 127.0.0.1:1: no cluster to work on \(.*refused\)"):
        run(Touch(tmp_path), [{"name": "a"}], 1, address="127.0.0.1:1")


# ---- Ray, started for a moment --------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, small_shards: None) -> DataSet:
    return DataSet(tmp_path / "data", images=20)


def test_preprocess_gives_the_same_bytes(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names and all; and a worker that was killed in the middle of a file leaves nothing of it behind."""
    monkeypatch.chdir(data.root)
    before = ray_processes()
    names: dict[str, Any] = {"annotations": Path("captions.txt"), "images": Path("Images")}
    data.run(**names, out=Path("local"))
    (data.root / "ray.partial" / "train").mkdir(parents=True)
    (data.root / "ray.partial" / "train" / "data-000000.arrow.12345678.tmp").write_bytes(b"half")
    summary = data.run(**names, out=Path("ray"), engine="ray", num_workers=2)
    assert tree(data.root / "ray") == tree(data.root / "local")
    assert summary.values["images"] == 20
    assert ray_processes() == before


@pytest.mark.slow
def test_actors_stay(tmp_path: Path) -> None:
    run(Touch(tmp_path), [{"name": str(i), "sleep": 0.1} for i in range(20)], 2)
    written = [path.read_text().split() for path in tmp_path.iterdir()]
    assert len(written) == 20
    last = {worker: max(int(call) for pid, call in written if pid == worker) for worker, _ in written}
    assert len(last) <= 2
    assert sum(last.values()) == 20


@pytest.mark.slow
def test_an_error_is_raised_and_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as error:
        run(Touch(tmp_path), [{"name": str(i), "fail": i == 3, "sleep": 0.2} for i in range(200)], 2)
    assert error.value.errno == 28
    assert any("in __call__" in note for note in error.value.__notes__)  # where it was raised
    assert len(list(tmp_path.iterdir())) < 100


@pytest.mark.slow
def test_a_shard_that_kills_its_worker_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"--engine ray: a worker died 5 times.*run the same command again"):
        run(Touch(tmp_path), [{"name": str(i), "die": i == 3} for i in range(8)], 2)
    assert not (tmp_path / "3").exists()


@pytest.mark.slow
def test_a_folder_that_a_node_does_not_see(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"--engine ray: .*/elsewhere is not there on node .*storage that all nodes share"
    ):
        run(Touch(tmp_path), [{"name": "a"}], 1, shared=(tmp_path / "elsewhere",))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_command_takes_ray_with_it(tmp_path: Path, how: signal.Signals) -> None:
    before = ray_processes()
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from test_ray import *; "
        "signal.signal(signal.SIGTERM, signal.default_int_handler); "
        "run(Touch(Path(sys.argv[1])), [{'name': str(i), 'sleep': 0.5} for i in range(1000)], 2)"
    )
    tests = map(str, Path(__file__).parents[:2])
    command = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *tests], stderr=subprocess.PIPE)
    wait_for(lambda: any(tmp_path.iterdir()), command)
    command.send_signal(how)
    assert b"KeyboardInterrupt" in command.communicate(timeout=60)[1] or how == signal.SIGKILL
    wait_for(lambda: ray_processes() == before)
    written = len(list(tmp_path.iterdir()))
    time.sleep(1.5)
    assert len(list(tmp_path.iterdir())) == written


# ---- three nodes, one of which dies ---------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head node and two more, of one core each."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(**small)
        yield cluster
    finally:
        cluster.shutdown()


def kill_a_node(cluster: Any, after: Callable[[], int], count: int) -> threading.Thread:
    """Kills the newest node as soon as `count` shards are finished."""

    def kill() -> None:
        wait_for(lambda: after() >= count)
        cluster.remove_node(sorted(cluster.worker_nodes, key=lambda node: node.node_id)[0], allow_graceful=False)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_node_dies_under_preprocess(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit.commands.preprocess, "fetch_processors", stored_processors)
    monkeypatch.setattr(toolkit.cache.staging, "SHARD_ROWS", 40)
    data = DataSet(tmp_path / "data", images=2000)
    data.run(out=tmp_path / "local", num_workers=2)
    index = data.out.with_name("dataset.partial") / "index"
    killer = kill_a_node(cluster, lambda: len(list(index.glob("*.arrow"))), 8)
    data.run(engine="ray", ray_address=cluster.address)
    assert not killer.is_alive()
    assert len(cluster.list_all_nodes()) == 2
    assert tree(data.out) == tree(tmp_path / "local")


@pytest.mark.slow
def test_a_node_dies_under_batch_caption(
    cluster: Any, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an image that can't be read, and one twice."""
    from toolkit.data.drawing import draw_sample

    draw_sample(tmp_path / "drawn", images=2000, seed=3)
    images = tmp_path / "drawn" / "Images"
    some = sorted(images.iterdir())
    (images / "bad.jpg").write_text("no image")
    (images / f"twice{some[0].suffix}").write_bytes(some[0].read_bytes())
    monkeypatch.setattr(toolkit.captioning.shards, "SHARD_IMAGES", 64)
    options: dict[str, Any] = {"paths": (str(images),), "model": str(model_dir)}
    local = batch_caption(BatchCaptionOptions(**options, output=tmp_path / "local.jsonl"))
    shards = tmp_path / "ray.jsonl.pieces"
    killer = kill_a_node(cluster, lambda: len(list(shards.glob("*.jsonl"))), 6)
    ray = batch_caption(
        BatchCaptionOptions(**options, output=tmp_path / "ray.jsonl", engine="ray", ray_address=cluster.address)
    )
    assert not killer.is_alive()
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    assert ray.values == {**local.values, "output": str(tmp_path / "ray.jsonl")}
    assert not shards.exists()


@pytest.mark.slow
def test_bench_scale_runs() -> None:
    script = Path(__file__).parents[2] / "scripts" / "bench_scale.py"
    done = subprocess.run(
        [sys.executable, script, "--images", "600", "--workers", "1", "--repeats", "1", "--size", "tiny"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0].startswith("600 images, median of 1")
    assert [line.split()[:2] for line in lines[1:]] == [
        ["preprocess", "local"], ["preprocess", "ray"], ["batch-caption", "local"], ["batch-caption", "ray"],
        ["finetune", "ranks"],
    ]  # fmt: skip
