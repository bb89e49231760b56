"""The folder of an audit: its private part, random ids, and one run id by which mixed files are refused."""

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from commands import run_ltmia
from ltmia.auditing.audit import AuditConfig, audit
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.reading import content_ids, read_texts
from ltmia.errors import ConfigError, StoreError
from ltmia.evaluation.audit_folder import MARKED, run_in
from ltmia.evaluation.files import read_audit, read_verdict
from ltmia.finetuning.perturbed import save_perturbed
from ltmia.folders import mark_folder
from ltmia.models.loading import load_pair
from ltmia.models.pair import Pair
from ltmia.ownership import Marker, read_marker
from ltmia.report.page import write_report

LIMIT = ("--max", "auc:1")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("outputs")
    save_perturbed(demo_base_path(), work / "target")
    for name, rows in (("members", range(0, 8)), ("nonmembers", range(60, 80))):
        lines = [json.dumps({"text": demo_texts().texts[i], "patient": f"patient-{i // 2}"}) for i in rows]
        (work / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    return work


@pytest.fixture(scope="module")
def pair(work: Path) -> Pair:
    return load_pair(work / "target", demo_base_path(), dtype="float32", device="cpu")


def audit_files(work: Path, pair: Pair, out: Path):
    texts = [read_texts(work / f"{name}.jsonl", group_column="patient") for name in ("members", "nonmembers")]
    return audit(pair, *texts, out, config=AuditConfig(attacks="difference"))


@pytest.fixture(scope="module")
def audited(work: Path, pair: Pair) -> Path:
    return audit_files(work, pair, work / "audited").folder


@pytest.fixture
def out(audited: Path, tmp_path: Path) -> Path:
    """A copy of the finished audit beside it, as far from the models, that a test may change."""
    return shutil.copytree(audited, audited.parent / tmp_path.name)


def test_what_holds_numbers_per_token_is_in_one_private_folder(audited: Path) -> None:
    assert {path.name for path in audited.iterdir()} - {".lock", ".ltmia.json"} == {
        "results.json", "records.parquet", "groups.parquet", "report.html", "private",
    }  # fmt: skip
    private = audited / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert "do not pass on" in (private / "README.md").read_text("utf-8")
    assert {path.name for path in private.iterdir()} == {"README.md", "run.json", "salt", "store", "tokens.parquet"}


def mark_audit(folder: Path) -> None:
    """Make a folder that says it is for an audit."""
    folder.mkdir()
    mark_folder(folder, Marker(kind=MARKED["audit"]))


def test_a_private_folder_that_is_a_link_is_refused(work: Path, pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    mark_audit(tmp_path / "out")
    (tmp_path / "out" / "private").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"private: a link"):
        audit_files(work, pair, tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "out" / "private").unlink()
    (tmp_path / "out" / "private").mkdir()
    (tmp_path / "out" / "private" / "store").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"store: a link"):
        audit_files(work, pair, tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_ids_and_groups_are_random_and_survive_a_second_run(work: Path, pair: Pair, out: Path, tmp_path: Path) -> None:
    first, again = read_audit(out)[1], audit_files(work, pair, out).records
    other = audit_files(work, pair, tmp_path / "other").records
    assert first["id"].to_pylist() == again["id"].to_pylist()
    assert first["group"].to_pylist() == again["group"].to_pylist()
    assert not set(first["id"].to_pylist()) & set(other["id"].to_pylist())
    assert not set(first["group"].to_pylist()) & set(other["group"].to_pylist())
    assert len(set(first["id"].to_pylist())) == len(first)
    # Whoever guesses all texts can make the ids that recordings and stores have; none of them is passed on.
    guessed = {name for kind in ("members", "nonmembers") for name in read_texts(work / f"{kind}.jsonl").ids}
    handed_on = b"".join((out / name).read_bytes() for name in ("results.json", "report.html"))
    handed_on += str(pq.read_table(out / "records.parquet").to_pydict()).encode()
    assert not [name for name in guessed if name.encode() in handed_on]


def test_a_guess_at_the_one_text_of_a_file_is_not_confirmed_by_its_id(pair: Pair, tmp_path: Path) -> None:
    text = demo_texts().texts[0]
    found = audit(pair, [text], demo_texts().texts[60:63], tmp_path, config=AuditConfig(attacks="loss"))
    assert found.records["id"][0].as_py() not in content_ids([text])
    own = audit(
        pair,
        demo_texts().take([0]),
        demo_texts().take([60, 61, 62]),
        tmp_path / "own",
        config=AuditConfig(attacks="loss"),
    )
    assert own.records["id"].to_pylist() == [demo_texts().ids[i] for i in (0, 60, 61, 62)], "the user's own stay"


def test_scores_are_rounded_and_every_figure_is_of_the_rounded_ones(audited: Path) -> None:
    results, records = read_audit(audited)
    scores, labels = records["score_difference"].to_numpy(), records["label"].to_numpy()
    low, high = np.quantile(scores, [0.25, 0.75])
    step = 10.0 ** (np.floor(np.log10(high - low)) - 2)
    np.testing.assert_allclose(scores / step, np.rint(scores / step), atol=1e-6)
    members, others = scores[labels == 1], scores[labels == 0]
    auc = ((members[:, None] > others) + 0.5 * (members[:, None] == others)).mean()
    assert results.attacks["difference"].auc.value == pytest.approx(auc, abs=1e-12)


def test_one_run_id_in_every_file(out: Path) -> None:
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert json.loads((out / "private" / "run.json").read_text("utf-8"))["run_id"] == results["run_id"]
    assert f'<meta name="ltmia-run" content="{results["run_id"]}">' in (out / "report.html").read_text("utf-8")
    for name in ("records.parquet", "groups.parquet", "private/tokens.parquet"):
        assert pq.read_schema(out / name).metadata[b"ltmia_run"].decode() == results["run_id"]


@pytest.mark.parametrize("name", ["results.json", "records.parquet", "groups.parquet", "report.html"])
def test_files_of_two_runs_are_refused(work: Path, pair: Pair, out: Path, tmp_path: Path, name: str) -> None:
    other = audit_files(work, pair, tmp_path / "other").folder
    shutil.copy(other / name, out / name)
    for private in (True, False):
        if not private:
            shutil.rmtree(out / "private")
        with pytest.raises(StoreError, match="two audits are mixed"):
            read_verdict(out)
        assert run_ltmia("gate", str(out), *LIMIT).returncode == 2
        if name in ("results.json", "records.parquet"):  # what `report` and `compare` read
            with pytest.raises(StoreError, match="two audits are mixed"):
                write_report(out)
            assert run_ltmia("compare", str(other), str(out)).returncode == 2


def test_what_may_be_handed_on_is_enough_for_gate_and_report(out: Path) -> None:
    before = (out / "report.html").read_bytes()
    shutil.rmtree(out / "private")
    assert run_ltmia("gate", str(out), *LIMIT).returncode in (0, 3)
    assert write_report(out).read_bytes() == before


def test_a_run_that_does_not_finish_leaves_no_verdict(work: Path, out: Path) -> None:
    old = (out / "results.json").read_bytes()
    target = ("audit", str(work / "target"), "--base", str(demo_base_path()), "-o", str(out))
    nowhere = ("--members", str(out / "missing.jsonl"), "--nonmembers", str(work / "nonmembers.jsonl"))
    assert run_ltmia(*target, *nowhere).returncode == 2
    gate = run_ltmia("gate", str(out), *LIMIT)
    assert gate.returncode == 2
    assert "no finished audit here; one was begun at 2" in gate.stderr
    assert (out / "private" / "previous" / "results.json").read_bytes() == old, "set aside, not lost"
    shutil.copy(out / "private" / "previous" / "results.json", out / "results.json")
    assert run_ltmia("gate", str(out), *LIMIT).returncode == 2, "nor is it judged when put back"


def test_a_run_killed_midway_has_set_the_results_aside(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt), run_in(out, read_marker(out)):
        raise KeyboardInterrupt
    assert not (out / "results.json").exists()
    with pytest.raises(StoreError, match="did not finish"):
        read_audit(out)


def test_audits_of_texts_without_ids_are_compared_where_the_private_folders_are(
    work: Path, pair: Pair, out: Path, tmp_path: Path
) -> None:
    same = audit_files(work, pair, tmp_path / "same").folder
    done = run_ltmia("compare", str(out), str(same))
    assert done.returncode == 0, done.stderr
    assert "not compared" not in done.stdout
    shutil.rmtree(same / "private")
    refused = run_ltmia("compare", str(out), str(same))
    assert refused.returncode == 2
    assert "private" in refused.stderr


def test_audits_of_other_texts_under_the_same_ids_are_not_compared(pair: Pair, tmp_path: Path) -> None:
    texts, config = demo_texts().texts, AuditConfig(attacks="loss")
    for name, first in (("one", 0), ("two", 100)):
        lines = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(texts[first : first + 8])]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
        audit(pair, read_texts(tmp_path / f"{name}.jsonl"), texts[60:68], tmp_path / name, config=config)
    refused = run_ltmia("compare", str(tmp_path / "one"), str(tmp_path / "two"))
    assert refused.returncode == 2
    assert "different texts" in refused.stderr
