"""Keeps an audit within a training run from changing the training's random numbers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the training's random state after an audit."""
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002  Trainer draws from the global state
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
