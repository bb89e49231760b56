"""The soak finds what it looks for: faults are planted in its readings, over the files of a finished audit."""

import shutil
from pathlib import Path

import pytest
import soak

N_TEXTS = 180
"""Of the materials."""


@pytest.fixture(scope="module")
def work(materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soak")
    shutil.copytree(materials / "audit", folder / "out")
    return folder


def readings(*, n: int = 30, bytes_per_row: float = 0, slower: float = 0) -> soak.Watch:
    """Make readings of a run whose memory grows, and whose rows cost so much more at the end than at the beginning."""
    rows = [100 * i for i in range(1, n + 1)]
    seconds = [0.01 * row * (1 + slower * row / rows[-1]) for row in rows]
    return soak.Watch(rows=rows, memory=[2**28 + int(bytes_per_row * row) for row in rows], seconds=seconds)


@pytest.mark.parametrize(
    ("n_texts", "watch", "found"),
    [
        (N_TEXTS, readings(), ""),
        (N_TEXTS, readings(bytes_per_row=100, slower=0.1), ""),
        (N_TEXTS, readings(bytes_per_row=2**20), "memory grows"),
        (N_TEXTS, readings(slower=1), "late texts cost more"),
        (N_TEXTS, readings(n=soak.FEWEST_READINGS - 1), "readings say nothing about growth"),
        (N_TEXTS + 1, readings(), "180 texts in the store, 180 records, of 181"),
    ],
)
def test_what_grows_or_is_missing_is_named(work: Path, n_texts: int, watch: soak.Watch, found: str) -> None:
    faults = soak.faults(work, n_texts, watch)
    assert len(faults) == bool(found)
    assert all(found in fault for fault in faults)
