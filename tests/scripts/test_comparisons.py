"""What torture compares: each kind of damage is seen."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from comparisons import Differences, compare_audits, compare_labs


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "whole"
    store = folder / "stores" / "one"
    store.mkdir(parents=True)
    table = pa.table({"id": ["a", "b"], "score": [1.0, float("nan")]})
    for path in (folder / "records.parquet", store / "texts.parquet"):
        pq.write_table(table, path)
    (folder / "results.json").write_text('{"created": 1, "auc": 2, "update": {"explained": 3, "seconds": 4}}')
    (store / "manifest.json").write_text('{"created": 1, "k": 2}')
    (store / "tokens.f16").write_bytes(b"1234")
    return folder


DAMAGE = {
    "a time": (lambda one: (one / "manifest.json").write_text('{"created": 9, "k": 2}'), 0, 0, 0),
    "another manifest": (lambda one: (one / "manifest.json").write_text('{"created": 1, "k": 3}'), 0, 0, 1),
    "another byte": (lambda one: (one / "tokens.f16").write_bytes(b"1235"), 0, 0, 1),
    "a file lost": (lambda one: (one / "tokens.f16").unlink(), 0, 0, 1),
    "a file more": (lambda one: (one / "more").write_bytes(b""), 0, 0, 1),
    "rows": (lambda one: pq.write_table(pa.table({"id": ["a", "a", "a"]}), one / "texts.parquet"), 1, 2, 1),
}
"""What is done to a store; rows lost, rows doubled, files that differ."""


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("compare", [compare_audits, compare_labs])
def test_damage_is_counted(compare, damage: str, whole: Path, tmp_path: Path) -> None:
    found, differences = tmp_path / "found", Differences()
    shutil.copytree(whole, found)
    compare(whole, found, differences)
    assert not differences
    change, lost, doubled, files = DAMAGE[damage]
    change(found / "stores" / "one")
    compare(whole, found, differences)
    rows = (lost, doubled) if compare is compare_labs else (0, 0)  # an audit's rows are those of its records
    assert (differences.lost, differences.doubled, len(differences.files)) == (*rows, files)
    assert bool(differences) == bool(files)


def test_rows_and_results_of_an_audit_are_compared(whole: Path, tmp_path: Path) -> None:
    found, differences = tmp_path / "found", Differences()
    shutil.copytree(whole, found)
    pq.write_table(pa.table({"id": ["a", "c", "c"], "score": [1.0, 1.0, 1.0]}), found / "records.parquet")
    (found / "results.json").write_text('{"created": 3, "auc": 3, "update": {"explained": 3, "seconds": 5}}')
    compare_audits(whole, found, differences)
    assert (differences.lost, differences.doubled) == (1, 2)
    assert differences.files == ["found/results.json: auc", "found/records.parquet"]


def test_unfinished_work_is_left_over(whole: Path, tmp_path: Path) -> None:
    found, differences = tmp_path / "found", Differences()
    shutil.copytree(whole, found)
    (found / ".model.work").mkdir()
    compare_labs(whole, found, differences)
    assert differences.files == ["found/.model.work: left over"]
