"""Each tracker, offline: what it shows by its own reader is what results.json holds."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit_figures import expected_values
from commands import run_ltmia
from ltmia.errors import ConfigError
from ltmia.integrations import trackers
from ltmia.integrations.trackers import TRACKERS, log_audit
from report_samples import made_up_audit


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_audit(tmp_path_factory.mktemp("made-up") / "audit", 60, attacks=3)


@pytest.fixture
def expected(audit: Path) -> dict[str, float]:
    found = {f"ltmia/{name}": value for name, value in expected_values(audit).items()}
    assert len(found) > 10
    return found


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_here")
def test_mlflow(audit: Path, expected: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    log_audit(audit, ["mlflow"])
    client = mlflow.MlflowClient()
    [run] = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(expected)
    assert "attacks/attack_0/tpr_at_fpr/0.001" in run.data.tags["ltmia.not_measured"]
    with mlflow.start_run() as own:
        log_audit(audit, ["mlflow"], step=7)
        log_audit(audit, ["mlflow"], step=9)
        assert mlflow.active_run() is not None
    history = client.get_metric_history(own.info.run_id, "ltmia/attacks/ltmia/auc")
    assert [point.step for point in history] == [7, 9]


def log_records(data: bytes) -> Iterator[bytes]:
    """Read LevelDB's log format, which offline runs are kept in: 32 KiB blocks; a record is whole (1) or in parts."""
    place, record = 0, b""
    while place + 7 <= len(data):
        size, kind = struct.unpack_from("<4xHB", data, place)
        if not kind:  # what is left of a block is empty
            break
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        room = 32768 - (place + 7) % 32768
        place += room if room < 7 else 0
        if kind in (1, 4):
            yield record
            record = b""


def history(data: bytes) -> dict[str, float]:
    """What an offline run logged."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for part in log_records(data[7:]):
        items = Record.FromString(part).history.item
        found |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    return found


@pytest.mark.usefixtures("_here")
def test_wandb(audit: Path, expected: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    log_audit(audit, ["wandb"], step=7)
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    give_up = time.monotonic() + 60
    while not (found := history(file.read_bytes())) and time.monotonic() < give_up:
        time.sleep(0.1)  # another process writes it
    shown = {name: value for name, value in found.items() if not name.startswith("_")}
    assert shown == pytest.approx(expected | {"ltmia/step": 7})


@pytest.mark.usefixtures("_here")
def test_trackio(audit: Path, expected: dict[str, float], tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    # In a process of its own: where it writes is settled when it is imported.
    script = (
        "import json, sys, trackio\nfrom ltmia.integrations.trackers import log_audit\n"
        "log_audit(sys.argv[1], ['trackio'])\nfrom trackio.sqlite_storage import SQLiteStorage\n"
        "[run] = SQLiteStorage.get_runs('ltmia')\nprint(json.dumps(SQLiteStorage.get_logs('ltmia', run)))\n"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(audit)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout.splitlines()[-1])
    assert {name: row[name] for name in expected} == pytest.approx(expected)


@pytest.mark.usefixtures("_here")
def test_tensorboard(audit: Path, expected: dict[str, float], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_audit(audit, ["tensorboard"], step=7)
    [folder] = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert {tag: points[0].value for tag, points in found.items()} == pytest.approx(expected, rel=1e-6)
    assert {point.step for points in found.values() for point in points} == {7}


def test_a_missing_tracker_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", ("no_such_module", TRACKERS["mlflow"][1]))
    with pytest.raises(ConfigError, match=r'pip install "ltmia\[mlflow\]"'):
        log_audit(tmp_path / "no-audit", ["mlflow"])
    with pytest.raises(ConfigError, match="no such tracker; there are mlflow, wandb, trackio, tensorboard"):
        log_audit(tmp_path / "no-audit", ["excel"])


def test_the_command_knows_every_tracker_and_refuses_a_missing_one_first(tmp_path: Path) -> None:
    wrong = run_ltmia("audit", "x", "--members", "y", "--nonmembers", "z", "-o", str(tmp_path), "--log-to", "excel")
    assert wrong.returncode == 2
    assert all(name in wrong.stderr for name in TRACKERS)
    absent = next((name for name in TRACKERS if not _is_there(TRACKERS[name][0])), None)
    if absent is None:
        pytest.skip("every tracker is installed")
    done = run_ltmia("audit", "x", "--members", "y", "--nonmembers", "z", "-o", str(tmp_path), "--log-to", absent)
    assert done.returncode == 2
    assert f"ltmia[{absent}]" in done.stderr


def _is_there(module: str) -> bool:
    try:
        __import__(module)
    except ModuleNotFoundError:
        return False
    return True
