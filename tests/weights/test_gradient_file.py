"""Damage to a folder of gradients is found on opening it, wherever it lies."""

import json
from pathlib import Path

import numpy as np
import pytest

from ltmia.weights.gradient_file import JOURNAL, GradientFile, GradientShape

SHAPE = GradientShape(n_texts=4, n_points=2, n_coordinates=6)


def opened(folder: Path) -> GradientFile:
    return GradientFile(folder, SHAPE, "a")


def done(file: GradientFile) -> list[list[int]]:
    return [[row for row in range(SHAPE.n_texts) if file.is_done(point, row)] for point in range(SHAPE.n_points)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    file = opened(tmp_path)
    for point in range(2):
        for rows in ([0, 1], [2, 3]):
            file.append(point, rows, np.random.default_rng(point).normal(size=(2, 6)).astype(np.float32))
    file.close()
    assert done(opened(tmp_path)) == [[0, 1, 2, 3]] * 2
    return tmp_path


@pytest.mark.parametrize("name", ["point", "rows", "scales"])
def test_a_changed_number_in_the_journal_is_damage(folder: Path, name: str) -> None:
    journal = folder / JOURNAL
    lines = journal.read_text("utf-8").splitlines()
    entry = json.loads(lines[2])
    entry[name] = {"point": 1, "rows": [3, 2], "scales": [2 * entry["scales"][0], entry["scales"][1]]}[name]
    lines[2] = json.dumps(entry)
    journal.write_text("\n".join(lines) + "\n", "utf-8")
    assert done(opened(folder)) == [[0, 1], [0, 1, 2, 3]]


def test_a_flipped_bit_or_a_lost_file_is_damage(folder: Path) -> None:
    path = folder / "gradients-1.f16"
    content = bytearray(path.read_bytes())
    content[3 * 12 + 5] ^= 1
    path.write_bytes(content)
    assert done(opened(folder)) == [[0, 1, 2, 3], [0, 1]]
    path.unlink()
    assert done(opened(folder)) == [[], []], "the journal alone says nothing"
