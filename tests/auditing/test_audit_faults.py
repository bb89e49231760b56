"""What the machine does to an audit: full and read-only disks, a second process, a clock that jumps."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from commands import run_ltmia
from disks import mounted, remount
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.folders import hold_folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, and an audit that nothing disturbed."""
    folder = tmp_path_factory.mktemp("work")
    for name, part in (("members", slice(0, 20)), ("nonmembers", slice(60, 90))):
        lines = [json.dumps({"text": text}) + "\n" for text in demo_texts().texts[part]]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    done = audit(folder, folder / "whole")
    assert done.returncode == 0, done.stderr
    return folder


def audit(work: Path, out: Path):
    base = str(demo_base_path())
    texts = (
        "--members",
        "members.jsonl",
        "--nonmembers",
        "nonmembers.jsonl",
        "--attacks",
        "loss",
        "--max-length",
        "32",
    )
    return run_ltmia("audit", base, "--base", base, *texts, "-o", str(out), "--quiet", cwd=work)


def found(out: Path) -> dict[str, Any]:
    results = json.loads((out / "results.json").read_text("utf-8"))
    kept = {name: results[name] for name in ("attacks", "decisions", "set_test", "validity", "data")}
    records = pq.read_table(out / "records.parquet").drop_columns(["id", "group"])  # salted, in each folder otherwise
    return kept | {"records": str(records.to_pydict())}


@pytest.mark.parametrize("size", ["size=60k", pytest.param("size=420k", marks=pytest.mark.slow)])
def test_a_full_disk_is_named_and_with_room_the_audit_goes_on(work: Path, tmp_path: Path, size: str) -> None:
    with mounted(tmp_path / "disk", size) as disk:
        done = audit(work, disk / "out")
        assert done.returncode == 2
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (disk / "out" / "results.json").exists()
        remount(disk, "size=20m")
        done = audit(work, disk / "out")
        assert done.returncode == 0, done.stderr
        assert found(disk / "out") == found(work / "whole")
        assert not list(disk.rglob("*.ltmia-part"))


def test_a_read_only_disk_is_named(work: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as disk:
        done = audit(work, disk / "out")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_process_in_the_same_folder_is_refused(work: Path) -> None:
    before = (work / "whole" / "results.json").read_bytes()
    with hold_folder(work / "whole"):
        done = audit(work, work / "whole")
    assert done.returncode == 2
    assert f"another run is at work here (process {os.getpid()})" in done.stderr
    assert (work / "whole" / "results.json").read_bytes() == before


@pytest.mark.parametrize("year_seconds", [0, 4_000_000_000])
def test_times_of_files_decide_nothing(work: Path, year_seconds: int) -> None:
    before, tokens = found(work / "whole"), work / "whole" / "private" / "store" / "tokens.f16"
    for path in (work / "whole").rglob("*"):
        os.utime(path, (year_seconds, year_seconds))
    done = audit(work, work / "whole")
    assert done.returncode == 0, done.stderr
    assert found(work / "whole") == before
    assert tokens.stat().st_mtime == year_seconds, "the store was made again"
