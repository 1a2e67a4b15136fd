"""Training by several processes: the model of one, one voice, and none left waiting when another is gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ranked import ENVIRONMENT, difference, ended, torchrun, weights
from waiting import wait_for

from toolkit.commands.finetune import finetune
from toolkit.errors import InputError, OutputError, RunError
from toolkit.options import FinetuneOptions
from toolkit.training.distributed import agreeing, broadcast_from_rank_0


def arguments(cache: Path, out: Path, *more: str) -> list[str]:
    return [
        "-m",
        "toolkit",
        "finetune",
        str(cache),
        "--output-dir",
        str(out),
        "--batch-size",
        "6",
        "--epochs",
        "2",
        *more,
    ]


def rows(model: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (model / "training.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def by_two(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that two processes trained, 6 images each a step."""
    out = tmp_path_factory.mktemp("ranks") / "model"
    code, said, errors, _ = ended(torchrun(2, *arguments(cache_dir, out, "--json")))
    assert (code, errors) == (0, [])
    assert json.loads(said)["ranks"] == 2, "one summary, not two"
    return out


def test_two_processes_train_the_model_of_one(by_two: Path, cache_dir: Path, tmp_path: Path) -> None:
    """The last step of an epoch has 4 images left, all of them the first process's."""
    finetune(FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "alone", batch_size=12, epochs=2))
    images = json.loads((cache_dir / "manifest.json").read_text())["counts"]["splits"]["train"]
    assert images % 12 == 4
    alone, two = weights(tmp_path / "alone"), weights(by_two)
    # Adam makes 1e-5 of rounding in the tenth step of what another order of summing leaves in the first.
    assert difference(alone, two) < 2e-4
    one, other = rows(tmp_path / "alone"), rows(by_two)
    assert [row.keys() for row in one] == [row.keys() for row in other]
    for mine, theirs in zip(one, other, strict=True):
        for name in ("step", "epoch", "captions", "warnings"):
            assert mine.get(name) == theirs.get(name), "what is generated comes back in order"
        for name in ("loss", "train_loss", "grad_norm", "eval_loss", "eval_cider", "eval_bleu_4"):
            assert mine.get(name, 0.0) == pytest.approx(theirs.get(name, 0.0), rel=1e-4), name
    assert "(2 epochs, 2 processes)" in (by_two / "README.md").read_text()


def test_a_run_stays_one_of_as_many_processes(by_two: Path, cache_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(by_two, tmp_path / "model")
    options = FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "model", batch_size=6, epochs=2)
    with pytest.raises(OutputError, match=r"other settings \(2 processes, now 1\); use those again"):
        finetune(options)
    (tmp_path / "model" / "finetune.json").unlink()
    with pytest.raises(OutputError, match="2 processes, now 1"):
        finetune(options)


def rank_pid(out: Path, rank: int) -> int:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            if str(out).encode() in (process / "cmdline").read_bytes() and b"LOCAL_RANK=%d" % rank in environment:
                return int(process.name)
        except OSError:
            continue
    raise AssertionError("no such process")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank(killed: int, by_two: Path, cache_dir: Path, tmp_path: Path) -> None:
    """The other one ends soon, with a sentence; the same command goes on, to the same weights."""
    out, partial = tmp_path / "model", tmp_path / "model.partial"
    process = torchrun(2, *arguments(cache_dir, out))
    wait_for(lambda: list(partial.glob("checkpoints/*/whole.json")), process)
    os.kill(rank_pid(out, killed), signal.SIGKILL)
    code, _, errors, _ = ended(process, 60)
    assert code != 0
    assert len(errors) == 1
    assert "the same command again to go on from the last checkpoint." in errors[0]
    assert not (out / "finetune.json").exists()
    code, said, errors, _ = ended(torchrun(2, *arguments(cache_dir, out)))
    assert (code, errors) == (0, [])
    assert said.startswith(f"{out}: done in ")
    assert difference(weights(by_two), weights(out)) == 0.0


@pytest.mark.slow
def test_a_mistake_is_told_once(by_two: Path, cache_dir: Path, tmp_path: Path) -> None:
    code, said, errors, _ = ended(torchrun(2, *arguments(tmp_path / "nothing", tmp_path / "model")))
    assert (code, said) == (1, "")
    assert errors == [
        f"Error: {tmp_path / 'nothing'}: no such folder; run `toolkit preprocess` first, or name the cache."
    ]
    code, said, errors, _ = ended(torchrun(2, *arguments(cache_dir, by_two)))
    assert (code, said, errors) == (0, f"{by_two}: finished already, nothing to do.\n", [])


def test_no_launcher(cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match=r"WORLD_SIZE 2: the processes can't be connected .* start them with torchrun"):
        finetune(FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert broadcast_from_rank_0(lambda: 5) == 5
    with pytest.raises(InputError, match=r"^x: missing"), agreeing():
        raise InputError("x: missing")


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start(rank: int, ranks: int, port: str, *command: str, **named: Any) -> subprocess.Popen[str]:
    """One process of several, as a launcher would start it."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    environment = {**ENVIRONMENT, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen([sys.executable, *command], env=environment, text=True, **named)


@pytest.mark.slow
def test_folders_of_their_own(cache_dir: Path, tmp_path: Path) -> None:
    """Two machines without a common file system, as two working folders."""
    port, running = free_port(), []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        command = ["-m", "toolkit", "finetune", str(cache_dir), "--max-steps", "2", "--quiet"]
        running.append(start(rank, 2, port, *command, cwd=tmp_path / str(rank), stderr=subprocess.PIPE))
    told = [process.communicate(timeout=60)[1] for process in running]
    wrong = "--output-dir model: is not the same folder for all processes; name one that they share."
    assert told == ["", f"Error: rank 1: {wrong}\n"]
    assert [process.returncode for process in running] == [1, 1]


SCENES = """
import json, os, sys
from toolkit.runtime import progress
from toolkit.errors import InputError, RunError, SaidElsewhere
from toolkit.training.distributed import agreeing, broadcast_from_rank_0, joined, rank
me, found = int(os.environ["RANK"]), {}

def wrong(*ranks):
    try:
        with agreeing():
            if me in ranks:
                raise InputError(f"file {me}: wrong")
    except Exception as error:
        return [type(error).__name__, str(error)]

def first(value):
    if me:
        raise AssertionError("called on another rank")
    if value is None:
        raise RunError("nothing")
    return value

with joined():
    found["rank"], found["quiet"] = rank(), progress.quiet
    found["none"], found["all"], found["last"], found["two"] = wrong(), wrong(0, 1, 2), wrong(2), wrong(1, 2)
    found["value"] = broadcast_from_rank_0(lambda: first({"a": 1}))
    try:
        broadcast_from_rank_0(lambda: first(None))
    except Exception as error:
        found["error"] = [type(error).__name__, str(error)]
found["after"] = progress.quiet
os.environ["MASTER_PORT"] = sys.argv[2]  # the first one's store may be there still
try:
    with joined():
        if me == 1:
            os._exit(1)
        with agreeing():
            pass
        broadcast_from_rank_0(lambda: 1)
except Exception as error:
    found["lost"] = [type(error).__name__, str(error)]
json.dump(found, open(sys.argv[1], "w"))
os._exit(0)
"""


def test_what_ranks_agree_on(tmp_path: Path) -> None:
    (tmp_path / "scenes.py").write_text(SCENES)
    script, port, other = str(tmp_path / "scenes.py"), free_port(), free_port()
    running = [start(rank, 3, port, script, str(tmp_path / f"{rank}.json"), other) for rank in range(3)]
    for process in running:
        process.wait(60)
    found = {rank: json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 2)}
    elsewhere = "SaidElsewhere"
    for rank, scenes in found.items():
        assert (scenes["rank"], scenes["quiet"], scenes["after"]) == (rank, rank > 0, False)
        assert scenes["none"] is None
        assert scenes["value"] == {"a": 1}
        name, said = scenes["lost"]
        assert (name, said.split(";")[0]) == (
            "RunError",
            f"rank {rank}: another process of this run has ended, or does not answer",
        )
    assert [found[0][scene] for scene in ("all", "last", "two", "error")] == [
        ["InputError", "file 0: wrong"], [elsewhere, "file 2: wrong"], [elsewhere, "file 1: wrong"], ["RunError", "nothing"]
    ]  # fmt: skip
    assert [found[2][scene] for scene in ("all", "last", "two", "error")] == [
        [elsewhere, "file 0: wrong"], ["InputError", "rank 2: file 2: wrong"], [elsewhere, "file 1: wrong"],
        [elsewhere, "nothing"],
    ]  # fmt: skip
