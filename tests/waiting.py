"""Waiting for something that another process or thread does; what never comes is a failure."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None, seconds: float = 120) -> None:
    """Until the condition holds; an error if the process ends first, or after so many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "the process ended before what was waited for"
        assert time.monotonic() < until, f"waited for {seconds} seconds"
        time.sleep(0.002)
