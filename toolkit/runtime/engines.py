"""Where tasks are run, by the value of --engine: `run(function, tasks, resources, progress, done)`."""

from __future__ import annotations

from toolkit.runtime.processes import run_local
from toolkit.runtime.ray_cluster import run_ray

ENGINES = {"local": run_local, "ray": run_ray}
