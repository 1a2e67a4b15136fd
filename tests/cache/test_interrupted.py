"""Runs that are killed, starved or crowded: the next one goes on, and ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from preprocessing import SHARD_ROWS, DataSet, decoded, finish_alone, picture, tree
from waiting import wait_for

from toolkit.errors import OutputError, RunError

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return DataSet(tmp_path / "data", images=60)


def shards(folder: Path) -> dict[str, tuple[int, int]]:
    """The finished shards: name, inode and time of change of every index file and of the data files it speaks of."""
    if not (folder / "index").is_dir():
        return {}
    names = [path.name for path in (folder / "index").glob("*.arrow")]
    files = [folder / "index" / name for name in names]
    files += [path for name in names for path in folder.glob(f"*/data-{name}")]
    return {path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def kill_at_random(data: DataSet, moments: int, seed: int, slowly: bool) -> int:
    """Kills runs with the whole of their processes left to themselves, each followed by a rerun that must leave the
    finished shards alone and end in the same bytes. With `slowly`, images take their time and every kill comes after a
    number of finished shards; else some come at a time. Returns how many kills met finished shards."""
    data.run(out=data.root / "undisturbed", num_workers=2)
    wanted = tree(data.root / "undisturbed")
    partial = data.out.with_name("dataset.partial")
    rng = random.Random(seed)
    script, whole, caught = (slow_script if slowly else DataSet.script)(data, num_workers=2), 0.0, 0
    if not slowly:
        began = time.monotonic()
        assert finish_alone(script).returncode == 0
        whole = time.monotonic() - began
    for _ in range(moments):
        shutil.rmtree(data.out.parent, ignore_errors=True)
        process = subprocess.Popen(script, stderr=subprocess.DEVNULL)
        # Half of a run is imports, so most moments are told by what stands, and only the others by the clock.
        if slowly or rng.random() < 0.5:
            wanted_shards = rng.randrange(1, len(data.rows) // 2 // SHARD_ROWS)
            wait_for(lambda n=wanted_shards: len(list((partial / "index").glob("*.arrow"))) >= n, process)
        elif rng.random() < 0.7:
            wait_for(partial.is_dir, process)
            time.sleep(rng.random() * whole * 0.5)
        else:
            time.sleep(rng.random() * whole)
        workers = children(process.pid)
        process.kill()
        process.wait()
        wait_for(lambda started=workers: not any(alive(pid) for pid in started))
        finished = shards(partial)
        caught += bool(finished) and not data.out.exists()
        data.run()
        after = shards(data.out)
        assert {name: after[name] for name in finished} == finished
        assert tree(data.out) == wanted
        assert data.beside() == ["dataset"]
    return caught


def test_killed_at_a_few_moments(data: DataSet) -> None:
    assert kill_at_random(data, moments=2, seed=1, slowly=True) == 2


@pytest.mark.slow
def test_killed_at_twenty_moments(tmp_path: Path) -> None:
    data = DataSet(tmp_path / "data", images=400)
    assert kill_at_random(data, moments=20, seed=2, slowly=False) >= 5


def test_stopped_after_each_shard(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without chance: an error after every second image, again and again until the run gets through."""
    import toolkit.cache.build

    data.run(out=data.root / "undisturbed")
    real, runs, said = toolkit.cache.build.read_image, 0, set()
    for _ in range(60):
        runs += 1
        left = [SHARD_ROWS * 3 // 2]

        def read_image(source: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(source)

        monkeypatch.setattr(toolkit.cache.build, "read_image", read_image)
        try:
            data.run()
            break
        except RunError as error:
            said.add(str(error))
    assert said == {"stopped; run the same command again to go on from the finished shards."}
    assert runs == 15
    assert tree(data.out) == tree(data.root / "undisturbed")
    assert data.beside() == ["dataset"]


def stop_after(data: DataSet, monkeypatch: pytest.MonkeyPatch, images: int, **options: Any) -> None:
    import toolkit.cache.build

    with monkeypatch.context() as patch:
        real, left = toolkit.cache.build.read_image, [images]

        def read_image(source: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(source)

        patch.setattr(toolkit.cache.build, "read_image", read_image)
        with pytest.raises(RunError):
            data.run(**options)


def test_stopped_and_gone_on_with_other_options(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels of the first, unfinished build serve the second, and those of the second a third."""
    stop_after(data, monkeypatch, 21, max_length=40)
    assert data.beside() == ["dataset.partial"]
    stop_after(data, monkeypatch, 12, max_length=41)
    assert data.beside() == ["dataset.partial", "dataset.stale"]
    calls = decoded(monkeypatch)
    values = data.run(max_length=42).values
    assert len(calls) == values["decoded"] == 60 - 20 - 12
    assert values["reused"] == 20 + 12
    assert data.beside() == ["dataset"]
    data.run(out=data.root / "undisturbed", max_length=42)
    assert tree(data.out) == tree(data.root / "undisturbed")


def test_stopped_while_a_finished_cache_stands(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data.run()
    before = tree(data.out)
    for i in range(100, 112):
        data.add(f"{i}.png", picture(i))
    data.write()
    stop_after(data, monkeypatch, 6)
    assert tree(data.out) == before
    calls = decoded(monkeypatch)
    data.run()
    assert len(calls) == 8
    data.run(out=data.root / "undisturbed")
    assert tree(data.out) == tree(data.root / "undisturbed")


def children(pid: int) -> list[int]:
    """All processes below one: the foreman, then its workers and the pool's helper."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    own = [int(line) for line in found.stdout.split()]
    return own + [below for child in own for below in children(child)]


def slow_script(data: DataSet, **options: Any) -> list[str]:
    """A run whose images take their time."""
    command = data.script(**options)
    slow = (
        "import time, toolkit.cache.build as b; r = b.read_image\n"
        "def slow(s): time.sleep(0.03); return r(s)\n"
        "b.read_image = slow\n"
    )
    command[2] = command[2].replace("preprocessing.run_alone", slow + "preprocessing.run_alone")
    return command


@pytest.mark.parametrize("which", [0, 1, -1])  # the foreman, a worker, the pool's helper, which is forked last
def test_a_killed_worker_ends_the_run_in_seconds(data: DataSet, which: int) -> None:
    process = subprocess.Popen(slow_script(data, num_workers=2), stderr=subprocess.PIPE, text=True)
    partial = data.out.with_name("dataset.partial")
    wait_for(lambda: len(shards(partial)) >= 2, process)
    below = children(process.pid)
    assert len(below) >= 4
    os.kill(below[which], signal.SIGKILL)
    began = time.monotonic()
    _, text = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert process.returncode == 1
    assert (
        text.strip().splitlines()[-1].startswith("Error: a worker process died, most often for lack of memory; run the")
    )
    assert not any(alive(pid) for pid in below)
    finished = shards(partial)
    assert finished
    data.run()
    after = shards(data.out)
    assert {name: after[name] for name in finished} == finished


def test_ctrl_c_is_one_sentence(data: DataSet) -> None:
    process = subprocess.Popen(
        slow_script(data, num_workers=2), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: len(shards(data.out.with_name("dataset.partial"))) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the run
    _, text = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Traceback" not in text
    assert text.strip().splitlines()[-1].startswith("Error: stopped; run the same command again")
    data.run()


def test_two_runs_at_once(data: DataSet) -> None:
    process = subprocess.Popen(slow_script(data, num_workers=1), stderr=subprocess.DEVNULL)
    wait_for(lambda: len(shards(data.out.with_name("dataset.partial"))) >= 1, process)
    with pytest.raises(OutputError, match="another run is building there"):
        data.run()
    assert process.poll() is None
    assert process.wait(timeout=30) == 0
    assert data.beside() == ["dataset"]
    assert "up to date" in data.run().text


def test_the_next_run_may_follow_a_kill_at_once(data: DataSet) -> None:
    """The killed run's workers hold its lock until they are dead."""
    process = subprocess.Popen(slow_script(data, num_workers=2), stderr=subprocess.DEVNULL)
    wait_for(lambda: len(shards(data.out.with_name("dataset.partial"))) >= 2, process)
    workers = children(process.pid)
    process.kill()
    data.run()
    process.wait()
    assert len(workers) >= 2
    assert not any(alive(pid) for pid in workers)


@pytest.mark.parametrize("moment", ["processors", "shards"])
def test_a_killed_run_leaves_no_process_that_talks(data: DataSet, tmp_path: Path, moment: str) -> None:
    """Nor one that waits: what it says would stand in the user's next prompt."""
    if moment == "shards":
        command = slow_script(data, num_workers=2)
    else:
        code = (
            "import sys; from pathlib import Path; from toolkit.models.processors import fetch_processors\n"
            "fetch_processors('', '', 'tiny', Path(sys.argv[1]))"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
    with open(tmp_path / "said", "w+") as said:
        process = subprocess.Popen(command, stderr=said, stdout=said)
        if moment == "shards":
            wait_for(lambda: len(shards(data.out.with_name("dataset.partial"))) >= 2, process)
        else:
            wait_for(lambda: children(process.pid), process)
        helpers = children(process.pid)
        assert helpers
        before = said.seek(0, 2)
        process.kill()
        process.wait()
        wait_for(lambda: not any(alive(pid) for pid in helpers))
        said.seek(before)
        assert said.read() == ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_is_one_sentence(tmp_path: Path, num_workers: int) -> None:
    """A limit on the size of files stands for the disk: writes fail half way through a shard."""
    data = DataSet(tmp_path / "data", images=24)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))

    done = subprocess.run(
        data.script(num_workers=num_workers), preexec_fn=limit, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        done.stderr.strip().splitlines()[-1].startswith(f"Error: --out {data.out}: the build failed (file too large)")
    )
    data.run()
    data.run(out=data.root / "undisturbed")
    assert tree(data.out) == tree(data.root / "undisturbed")


def test_a_full_disk_at_the_end(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    import toolkit.cache.finalize

    def write_dataset(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(toolkit.cache.finalize, "write_dataset", write_dataset)
        with pytest.raises(RunError, match=r"the build failed \(no space left on device\)"):
            data.run()
    calls = decoded(monkeypatch)
    data.run()
    assert calls == []
