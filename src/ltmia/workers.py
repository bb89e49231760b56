"""Prepares worker processes: one thread each, and a Ray cluster. Imports no numeric library."""

import os
from typing import Any

from ltmia.errors import ConfigError

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment variables of a worker, which must be set before it imports a numeric library."""


def connect(n_workers: int | None) -> None:
    """Join the Ray cluster that is there; without one, start Ray on this machine with `n_workers` CPUs.

    Raises:
        ConfigError: If RAY_ADDRESS names a cluster that does not answer.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage report is sent
    shared: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "runtime_env": {"env_vars": ONE_THREAD}}
    try:
        ray.init(address="auto", **shared)
    except ConnectionError:
        if address := os.environ.get("RAY_ADDRESS"):
            raise ConfigError(f"RAY_ADDRESS={address}: no Ray cluster answers there; unset it, or start one") from None
        ray.init(address="local", num_cpus=n_workers or os.cpu_count(), include_dashboard=False, **shared)
