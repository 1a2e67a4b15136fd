"""How commands end: signals, a standard output that can't be written, a bug of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit import cli
from toolkit.commands import inspect
from toolkit.options import InspectOptions, SampleOptions

# A command of the real command line whose work is `BODY`; it writes "ready" when signals may come.
PROGRAM = """
import os, sys, threading, time
from toolkit import cli
from toolkit.commands import sample
from toolkit.runtime import ending
ending.GRACE, ending.SAME = 0.5, 0.2
def nap():
    print("ready", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.05)
def work(options):
{body}
sample.sample = work
sys.argv = ["toolkit", "sample", "x"]
cli.main()
"""


def start(body: str, **env: str) -> subprocess.Popen[str]:
    code = PROGRAM.format(body="\n".join("    " + line for line in body.splitlines()))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | env
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command(how: signal.Signals, code: int) -> None:
    process = start("nap()")
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, "Stopped; run the same command again to go on.\n")


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sentence_of_the_command_s_own(how: signal.Signals, code: int) -> None:
    process = start("try:\n    nap()\nexcept KeyboardInterrupt:\n    raise cli.ToolkitError('stopped; go on so.')")
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, "Error: stopped; go on so.\n")


@pytest.mark.parametrize(
    "body",
    [
        "import ctypes\nprint('ready', file=sys.stderr, flush=True)\nwhile True: ctypes.CDLL(None).sleep(100)",
        "try:\n    nap()\nfinally:\n    time.sleep(100)",
        "import atexit; atexit.register(time.sleep, 100)\nnap()",
        "threading.Thread(target=time.sleep, args=(100,)).start()\nnap()",
    ],
    ids=["in a call", "in what tidies up", "at exit", "in a thread"],
)
def test_one_signal_suffices_whatever_hangs(body: str) -> None:
    process = start(body)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "Stopped" in errors


def test_a_second_signal_ends_at_once() -> None:
    process = start("ending.GRACE = 1000\ntry:\n    nap()\nfinally:\n    print('tidying', file=sys.stderr, flush=True)\n"
                    "    time.sleep(100)")  # fmt: skip
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline() == "tidying\n"
    while process.poll() is None:  # one that comes within SAME is the first one, sent twice
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert process.returncode == 130


def test_the_same_signal_twice_is_one() -> None:
    """`timeout` sends it to the process and to its group."""
    process = start(
        "ending.SAME = 1000\ntry:\n    nap()\nfinally:\n    time.sleep(0.3)\n    print('tidied', file=sys.stderr)"
    )
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.splitlines()[0]) == (143, "tidied")


def test_a_checkpoint_may_take_longer() -> None:
    process = start("try:\n    nap()\nfinally:\n    with ending.allowing(60):\n        time.sleep(1.5)\n"
                    "        print('saved', file=sys.stderr, flush=True)\n    time.sleep(100)")  # fmt: skip
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert errors.splitlines()[0] == "saved"
    assert "Stopped at once" in errors


def test_a_fork_is_another_process() -> None:
    """A worker that gets a signal does not end the command."""
    body = """
import signal
print("ready", file=sys.stderr, flush=True)
pid = os.fork()
if pid == 0:
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        os._exit(7)
time.sleep(0.3)
os.kill(pid, signal.SIGTERM)
print("worker", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=sys.stderr)
time.sleep(1)
from toolkit.records import Summary
return Summary("done")
"""
    output, errors = start(body).communicate(timeout=30)
    assert (output, errors) == ("done\n", "worker 7\n")


# ---- standard output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--help"]])
def test_a_full_standard_output(arguments: list[str], cache_dir: Path) -> None:
    command = [sys.executable, "-m", "toolkit", "inspect", str(cache_dir), *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: standard output can't be written (No space left on device); the files that the command wrote are complete.\n"
    )


def test_nobody_reads_on(cache_dir: Path) -> None:
    """`toolkit inspect cache | head`"""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "toolkit", "inspect", str(cache_dir)]
    with os.fdopen(writing, "w") as broken:
        done = subprocess.run(command, stdout=broken, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_full_standard_error_stops_no_work(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "toolkit", "inspect", "nothing"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=full
        )
    assert (done.returncode, done.stdout) == (1, b"")


# ---- in this process ------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and standard error of `main`."""
    monkeypatch.setattr(sys, "argv", ["toolkit", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().err


def test_a_bug_of_ours_is_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(options: InspectOptions) -> None:
        raise TypeError("ours")

    monkeypatch.setattr(inspect, "inspect", broken)
    code, errors = run(monkeypatch, capsys, "inspect", ".")
    assert code == 1
    assert errors.startswith("Traceback (most recent call last):")
    assert errors.splitlines()[-2:] == [
        "TypeError: ours", "Error: this is a bug in toolkit, not a mistake of yours; please report it with the lines above.",
    ]  # fmt: skip


def test_a_full_disk_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(options: InspectOptions) -> None:
        raise OSError(28, "No space left on device", "a/b.tmp")

    monkeypatch.setattr(inspect, "inspect", full)
    assert run(monkeypatch, capsys, "inspect", ".") == (
        1, "Error: a/b.tmp: can't be written (No space left on device); free some space and run it again.\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "value", "arguments", "code", "sentence"),
    [
        ("NUM_WORKERS", "0", ["preprocess"], 1, "Error: NUM_WORKERS 0: must be at least 1."),
        ("TOOLKIT_PREPROCESS_VAL_FRACTION", "0.9", ["preprocess", "--test-fraction", "0.2"], 1,
         "Error: TOOLKIT_PREPROCESS_VAL_FRACTION 0.9: with --test-fraction 0.2 nothing is left to train on."),
        ("TOOLKIT_PREPROCESS_TEST_FRACTION", "0.9", ["preprocess", "--val-fraction", "0.2"], 1,
         "Error: --val-fraction 0.2: with TOOLKIT_PREPROCESS_TEST_FRACTION 0.9 nothing is left to train on."),
        ("TOOLKIT_INSPECT_PATH", "no where", ["inspect"], 1, "Error: TOOLKIT_INSPECT_PATH no where: no such file or folder"),
        ("TOOLKIT_FINETUNE_EPOCHS", "many", ["finetune"], 2, "Invalid value for TOOLKIT_FINETUNE_EPOCHS: "),
        ("TOOLKIT_EVALUATE_HUMAN", "perhaps", ["evaluate"], 2, "Invalid value for TOOLKIT_EVALUATE_HUMAN: "),
        ("TOOLKIT_SAMPLE_IMAGES", "0", ["sample", "x", "--images", "-1"], 1, "Error: --images -1: must be at least 1."),
    ],
)  # fmt: skip
def test_a_wrong_value_is_blamed_on_its_variable(
    variable: str, value: str, arguments: list[str], code: int, sentence: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, value)
    ended, errors = run(monkeypatch, capsys, *arguments)
    assert ended == code
    assert sentence in errors.splitlines()[-1]


def test_a_variable_may_have_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was typed may not: a variable is a default of many runs."""
    monkeypatch.chdir(tmp_path)
    wrong = "Error: --seed 7: only applies with --sample; add that.\n"
    assert run(monkeypatch, capsys, "batch-caption", "none", "--seed", "7") == (1, wrong)
    monkeypatch.setenv("TOOLKIT_BATCH_CAPTION_SEED", "7")
    monkeypatch.setenv("TOOLKIT_BATCH_CAPTION_TOP_K", "7")
    code, errors = run(monkeypatch, capsys, "batch-caption", "none")
    assert (code, errors.splitlines()[-1][:34]) == (1, "Error: none: no such file or folde")


def test_a_misspelt_variable_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOLKIT_SAMPEL_IMAGES", "1")
    monkeypatch.setenv("TOOLKIT_ZZZ", "1")
    monkeypatch.setenv("TOOLKIT_SAMPLE_SEED", "3")
    code, errors = run(monkeypatch, capsys, "sample", "x", "--images", "2")
    assert code == 0
    assert errors.splitlines() == [
        "TOOLKIT_SAMPEL_IMAGES: no option reads this variable; did you mean TOOLKIT_SAMPLE_IMAGES?",
        "TOOLKIT_ZZZ: no option reads this variable.",
    ]
    assert run(monkeypatch, capsys, "sample", "y", "--images", "2", "--quiet") == (0, "")
    assert SampleOptions(Path("x")).seed == 42
