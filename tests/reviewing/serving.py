"""`toolkit review` as a process of its own, and captions for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Server:
    """The running command; `address` is what it has printed."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toolkit", "review", *arguments], cwd=folder, stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"http://\S+/", line):
                self.address = found[0]
                return
        raise AssertionError("".join(self.said))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self.process.stderr is not None
        self.process.stderr.close()


def write_captions(path: Path, images: Sequence[str], **rows: dict[str, Any]) -> None:
    """A row for each image, with scores in another order than theirs."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        for number, image in enumerate(images):
            row = {"image": image, "caption": f"a thing number {number}", "score": -(number * 7 % len(images)) / 10 - 0.1,
                   "ended": True, "error": None, "width": 9, "height": 9}  # fmt: skip
            file.write(json.dumps({**row, **rows.get(str(number), {})}, ensure_ascii=False) + "\n")


def actions_in(path: Path) -> list[tuple[str, str, str | None]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["id"], row["action"], row["text"]) for row in rows]
