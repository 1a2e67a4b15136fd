"""Scripts run; what they measure is not asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"
PHOTOS = Path(__file__).parent / "data" / "photos"


def test_notebook_baseline() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "notebook_baseline.py", PHOTOS, "--max-steps", "2", "--generate", "1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["train_captions_per_s"] > 0
    assert figures["generate_images_per_s"] > 0
    assert isinstance(figures["last_caption"], str)
