"""Compares the rows and files that two runs of a command wrote. Used by `torture.py`."""

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TIME_FIELDS = ("created", "seconds", "timing", "command", "environment", "reused", "run_id", "content_sha256", "sha256")
"""Fields of results.json, manifests and kept scores that depend on time, machine or run, or on an earlier run."""
OF_ONE_RUN = ("records.parquet", "groups.parquet", "tokens.parquet", "report.html", "results.json", "run.json")
"""Files of an audit that carry the id of their run. Files that an earlier run left are not compared."""


@dataclass
class Differences:
    """What a disturbed run came to, compared with an undisturbed one."""

    lost: int = 0
    """Rows."""
    doubled: int = 0
    """Rows."""
    files: list[str] = field(default_factory=list)
    """Files that differ, are missing or are left over."""

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.files)


def compare_audits(whole: Path, found: Path, differences: Differences) -> None:
    """Compare results, records and store of two audits or scorings."""
    ours, theirs = (json.loads((folder / "results.json").read_text("utf-8")) for folder in (found, whole))
    for key in sorted(set(ours) | set(theirs)):
        if key not in TIME_FIELDS and _without_seconds(ours.get(key)) != _without_seconds(theirs.get(key)):
            differences.files.append(f"{found.name}/results.json: {key}")
    count_rows(whole / "records.parquet", found / "records.parquet", differences)
    rows, wanted = (pq.read_table(folder / "records.parquet") for folder in (found, whole))
    if not rows.equals(wanted) and str(rows.to_pydict()) != str(wanted.to_pydict()):  # NaN is not NaN
        differences.files.append(f"{found.name}/records.parquet")
    compare_files(whole, found, differences, OF_ONE_RUN)


def _without_seconds(section: Any) -> Any:
    """Leave out how long the work of a section took."""
    return {key: value for key, value in section.items() if key != "seconds"} if isinstance(section, dict) else section


def compare_labs(whole: Path, found: Path, differences: Differences) -> None:
    """Compare the stores of two labs, and look for unfinished work that was left."""
    compare_files(whole / "stores", found / "stores", differences)
    for path in sorted((whole / "stores").rglob("texts.parquet")):
        count_rows(path, found / path.relative_to(whole), differences)
    hidden = [path for path in found.rglob(".*.*") if ".partial-" in path.name or path.name.endswith(".work")]
    differences.files += [f"{found.name}/{path.relative_to(found)}: left over" for path in sorted(hidden)]


def compare_files(whole: Path, found: Path, differences: Differences, except_for: Collection[str] = ()) -> None:
    """Compare all files of two folders byte for byte, except the times in manifests."""
    ours, theirs = (
        {p.relative_to(f) for p in f.rglob("*") if p.is_file() and "previous" not in p.relative_to(f).parts}
        for f in (found, whole)
    )
    differences.files += [f"{found}/{path}: missing or left over" for path in sorted(ours ^ theirs)]
    for path in sorted(ours & theirs):
        if path.name not in except_for and _content(found / path) != _content(whole / path):
            differences.files.append(f"{found}/{path}")


def count_rows(whole: Path, found: Path, differences: Differences) -> None:
    """Count the ids of a Parquet file that are lost, and those that are there too often."""
    if not found.exists():
        return  # `Differences.files` names a missing file
    wanted, ids = (Counter(pq.read_table(path)["id"].to_pylist()) for path in (whole, found))
    differences.lost += (wanted - ids).total()
    differences.doubled += (ids - wanted).total()


def _content(path: Path) -> object:
    if path.suffix != ".json":
        return path.read_bytes()
    said = json.loads(path.read_text("utf-8"))
    return {key: value for key, value in said.items() if key not in TIME_FIELDS}
