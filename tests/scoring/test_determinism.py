"""Same seed and texts, same results: to the last digit on as many threads, to a stated tolerance on more."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from commands import run_ltmia
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.finetuning.perturbed import save_perturbed

TIME_FIELDS = {"created", "timing", "command", "environment", "run_id", "content_sha256"}
SCORE_TOLERANCE = 1e-4
"""Of scores on one and on two threads: sums are taken in another order."""
FIGURE_TOLERANCE = 0.02
"""Of figures in results.json: where two scores are that close, they may change places."""
AUDIT = (
    "audit", "target", "--base", "base", "--members", "members.jsonl", "--nonmembers", "nonmembers.jsonl",
    "--group-column", "document", "--attacks", "ltmia,loss,wbc", "--max-length", "32", "--quiet", "-o",
)  # fmt: skip


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three audits of the same texts: `first` and `second` on one thread, `threads` on two."""
    work = tmp_path_factory.mktemp("determinism")
    (work / "base").symlink_to(demo_base_path())
    save_perturbed(demo_base_path(), work / "target")
    texts = demo_texts()
    for name, rows in (("members", range(0, 16)), ("nonmembers", range(300, 330))):
        lines = [json.dumps({"id": texts.ids[i], "text": texts.texts[i], "document": texts.groups[i]}) for i in rows]
        (work / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    for name in ("first", "second"):
        done = run_ltmia(*AUDIT, name, cwd=work)
        assert done.returncode == 0, done.stderr
        for other in ("second", "threads"):  # with one salt groups have the same hashes
            (work / other / "private").mkdir(parents=True, exist_ok=True)
            for name in (".ltmia.json", "private/salt"):
                shutil.copy(work / "first" / name, work / other / name)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    quickly = "from quick import be_quick; be_quick(); from ltmia.__main__ import main; main()"
    command = [sys.executable, "-c", quickly, *AUDIT, "threads"]
    threads["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=work, env=os.environ | threads, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return work


def results(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "results.json").read_text("utf-8"))
    assert found["update"].pop("seconds") > 0
    return {key: value for key, value in found.items() if key not in TIME_FIELDS}


def test_the_same_audit_gives_the_same_files(audits: Path) -> None:
    assert results(audits / "first") == results(audits / "second")
    for name in ("records.parquet", "private/tokens.parquet", "private/store/texts.parquet"):
        tables = [pq.read_table(audits / run / name) for run in ("first", "second")]
        assert str(tables[0].to_pydict()) == str(tables[1].to_pydict()), name
    assert (audits / "first/private/store/tokens.f16").read_bytes() == (
        audits / "second/private/store/tokens.f16"
    ).read_bytes()


def test_two_threads_give_the_same_within_the_tolerance(audits: Path) -> None:
    environment = json.loads((audits / "threads" / "results.json").read_text("utf-8"))["environment"]
    assert environment["torch_threads"] == "2"
    one, two = (pq.read_table(audits / run / "records.parquet") for run in ("first", "threads"))
    assert one["id"].equals(two["id"])
    for name in one.column_names:
        if name.startswith("score_"):
            np.testing.assert_allclose(
                one[name].to_numpy(), two[name].to_numpy(), atol=SCORE_TOLERANCE, rtol=SCORE_TOLERANCE, err_msg=name
            )
    differing = list(differences(results(audits / "first"), results(audits / "threads"), "results"))
    assert not differing


def differences(one: Any, two: Any, place: str) -> list[str]:
    """Places where two results differ by more than float noise; sentences are left out, for they repeat figures."""
    if isinstance(one, dict) and isinstance(two, dict):
        if one.keys() != two.keys():
            return [f"{place}: other keys"]
        keys = [key for key in one if key not in ("sentence", "verdict")]
        return [found for key in keys for found in differences(one[key], two[key], f"{place}.{key}")]
    if isinstance(one, float) and isinstance(two, float | int):
        return (
            []
            if math.isclose(one, two, rel_tol=FIGURE_TOLERANCE, abs_tol=FIGURE_TOLERANCE)
            else [f"{place}: {one}, {two}"]
        )
    return [] if one == two else [f"{place}: {one}, {two}"]
