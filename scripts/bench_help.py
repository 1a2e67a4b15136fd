"""How long help takes, the whole process: `toolkit --help` and that of each command, beside an interpreter that does nothing.

    python scripts/bench_help.py --rounds 15

The ways take turns. Seconds of processor time are those of the process alone; seconds of a clock are only what a user waits
for where nothing else runs.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

from toolkit.cli import COMMANDS


def measured(arguments: list[str]) -> tuple[float, float]:
    """Seconds of a clock and of the processor that a process takes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True, env={**os.environ, "COLUMNS": "80"}
    )
    elapsed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    ways = {
        "python, nothing": ["-c", "pass"],
        "python, import typer": ["-c", "import typer"],
        "toolkit --help": ["-m", "toolkit", "--help"],
        **{f"toolkit {command} --help": ["-m", "toolkit", command, "--help"] for command in COMMANDS},
    }
    for arguments in ways.values():
        measured(arguments)  # compiled, and in the page cache
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, arguments in ways.items():
            found[way].append(measured(arguments))
    print(f"{'way':<30} {'clock, s: least':>16} {'median':>8} {'processor, s: least':>20} {'median':>8}")
    for way, times in found.items():
        (least, middle), (busy, busy_middle) = ((min(t), statistics.median(t)) for t in zip(*times, strict=True))
        print(f"{way:<30} {least:>16.3f} {middle:>8.3f} {busy:>20.3f} {busy_middle:>8.3f}")


if __name__ == "__main__":
    main()
