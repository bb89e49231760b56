"""The commands on real text and real (tiny) models, from outside, as a user runs them."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import ltmia
from commands import run_ltmia
from ltmia.__main__ import main
from ltmia.attacks.multi_pass import Shots
from ltmia.attacks.table import CONTROL
from ltmia.auditing.audit import AuditConfig, audit
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.errors import ConfigError
from ltmia.evaluation.files import read_results
from ltmia.models.loading import load_pair
from ltmia.report.page import write_report
from ltmia.scoring.in_memory import score_texts

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


MEMBERS, NONMEMBERS = range(40), range(60, 120)
"""Of the embedded texts."""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_ltmia(*arguments, cwd=cwd, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned tiny LM, its members and more non-members, made with the commands."""
    folder = tmp_path_factory.mktemp("work")
    texts = demo_texts()
    for name, rows in (("members", MEMBERS), ("nonmembers", NONMEMBERS)):
        lines = [json.dumps({"id": texts.ids[i], "text": texts.texts[i], "document": texts.groups[i]}) for i in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    done = run(
        "finetune", str(demo_base_path()), "--texts", "members.jsonl", "-o", "target", "--epochs", "2",
        "--learning-rate", "1e-3", "--max-length", "64", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("own", [None, "active"])
def test_threads_that_wait_do_not_spin_unless_the_user_wants_it(
    monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", own or "")
    if own is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(sys, "argv", ["ltmia", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ["OMP_WAIT_POLICY"] == (own or "passive")


SHORT = ("--max-length", "48")
AUDIT = ("--members", "members.jsonl", "--nonmembers", "nonmembers.jsonl", "--group-column", "document", *SHORT)


def test_audit_writes_its_three_files(work: Path) -> None:
    command = [sys.executable, "-m", "ltmia", "audit", "target", "--base", str(demo_base_path()), *AUDIT, "-o", "audit"]
    done = subprocess.run(command, cwd=work, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bag_of_words" in done.stdout
    results = read_results(work / "audit")
    assert results.data.n_members == len(MEMBERS)
    assert set(results.attacks) >= {"ltmia", "loss", "difference", "ez_mia", "wbc", "bag_of_words"}
    assert results.attacks["difference"].auc.value > 0.75
    assert results.attacks["loss"].tpr_at_fpr["0.001"].value is None
    records = pq.read_table(work / "audit" / "records.parquet")
    assert records.num_rows == len(MEMBERS) + len(NONMEMBERS)
    assert records["label"].to_pylist() == [1] * len(MEMBERS) + [0] * len(NONMEMBERS)
    assert not np.isnan(records["score_ltmia"].to_numpy()).any()


def test_no_candidate_text_is_left_behind(work: Path) -> None:
    passages = [demo_texts().texts[i][20:60] for i in (*MEMBERS, *NONMEMBERS)]
    for path in (work / "audit").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(passage.encode() in content for passage in passages), path


def test_report_is_rendered_from_files_alone_and_without_torch(work: Path) -> None:
    page = work / "audit" / "report.html"
    before = page.read_bytes()
    page.unlink()
    code = (
        "import sys; from ltmia.__main__ import main; sys.argv = ['ltmia', 'report', 'audit']\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert page.read_bytes() == before
    assert b"http://" not in before.replace(b"http://www.w3.org/", b"")
    assert b"https://" not in before


def test_running_again_gives_the_same_numbers(work: Path) -> None:
    before = read_results(work / "audit")
    done = run("audit", "target", "--base", str(demo_base_path()), *AUDIT, "-o", "audit", "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    after, first = json.loads(done.stdout), json.loads(before.model_dump_json())
    for results in (after, first):
        del results["attacks"][CONTROL]  # the first run had all its trees, see `quick`
    assert after["attacks"] == first["attacks"]
    assert after["decisions"] == first["decisions"]
    # Nothing was run again: the times are those of the run that did the work.
    assert after["reused"]
    for name in ("forward_seconds", "feature_seconds"):
        assert after["timing"][name] == pytest.approx(getattr(before.timing, name), rel=0.01, abs=0.1)
    assert after["timing"]["seconds"] >= before.timing.forward_seconds


def test_hostile_ids_cannot_leave_the_page(work: Path) -> None:
    texts = demo_texts()
    pair = load_pair(work / "target", demo_base_path(), dtype="float32", device="cpu")
    hostile = ltmia_texts(texts.texts[:30], '</script><script>alert(1)</script>"\u202e')
    result = audit(pair, hostile, list(texts.texts[60:120]), work / "hostile", config=AuditConfig(attacks="loss"))
    page = write_report(result.folder).read_text("utf-8")
    assert "<script>alert" not in page


def ltmia_texts(texts: tuple[str, ...], prefix: str):
    from ltmia.records import Texts

    return Texts(texts=texts, ids=tuple(f"{prefix}{i}" for i in range(len(texts))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("audit", "nowhere/at/all", "--base", "target", *AUDIT, "-o", "x"), "no model"),
        (("audit", str(demo_base_path()), *AUDIT, "-o", "x"), "--base"),
        (
            ("audit", "target", "--base", "target", "--members", "none.jsonl", "--nonmembers", "n", "-o", "x"),
            "none.jsonl",
        ),
        (("audit", "target", "--base", "target", *AUDIT, "--attacks", "los", "-o", "x"), "did you mean 'loss'"),
        (("audit", "target", "--base", "target", *AUDIT, "--text-column", "body", "-o", "x"), "body"),
        (("report", "nowhere"), "results.json"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(work: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments, cwd=work)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("n_members", "n_nonmembers"), [(10, 0), (0, 10), (1, 1)])
def test_one_sided_audits_give_nulls_with_reasons(work: Path, n_members: int, n_nonmembers: int) -> None:
    pair = load_pair(work / "target", demo_base_path(), dtype="float32", device="cpu")
    texts = list(demo_texts().texts)
    result = audit(
        pair, texts[:n_members], texts[60 : 60 + n_nonmembers], work / f"few{n_members}{n_nonmembers}",
        config=AuditConfig(attacks="loss,difference"),
    )  # fmt: skip
    assert (result.folder / "report.html").is_file()
    assert result.results.attacks["loss"].tpr_at_fpr["0.1"].value is None
    assert result.results.decisions.n_flagged == 0


def test_public_api_scores_texts_in_order_and_batch_size_does_not_matter(work: Path) -> None:
    pair = ltmia.load_pair(work / "target", demo_base_path(), dtype="float32", device="cpu")
    texts = [*demo_texts().texts[:9], "", "x", "\ud800 lone \x00 " * 3, "word " * 30_000]
    small, large = (ltmia.score_texts(pair, texts, batch_size=size) for size in (1, 64))
    backwards = ltmia.score_texts(pair, texts[::-1], batch_size=7)
    for name, values in small.items():
        assert np.isnan(values[9])
        if name != "surp":  # NaN where the target is never sure of anything
            assert not np.isnan(values[:9]).any(), name
        np.testing.assert_allclose(values, large[name], atol=1e-4, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(values, backwards[name][::-1], atol=1e-4, rtol=1e-4, err_msg=name)


def test_published_features_do_not_depend_on_batch_size(work: Path) -> None:
    pair = ltmia.load_pair(work / "target", demo_base_path(), dtype="float32", device="cpu")
    texts = [*demo_texts().texts[:5], "short one", ""]
    one, many = (ltmia.extract_features(pair, texts, batch_size=size) for size in (1, 16))
    assert one.values.shape == (7, 128, 154)
    assert not one.mask[:, -1].any()
    np.testing.assert_array_equal(one.mask, many.mask)
    # A rank may step where two logits are within float noise of each other; nothing else may move.
    close = np.isclose(one.values, many.values, atol=1e-5, rtol=1e-5)
    assert close.mean() > 0.9999


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_what_is_typed_first_loads_nothing_that_takes_long(word: str) -> None:
    code = (
        "import atexit, sys; from ltmia.__main__ import main\n"
        "slow = {'torch', 'transformers', 'numpy', 'pyarrow', 'rich', 'pydantic', 'scipy'}\n"
        "atexit.register(lambda: print('slow:', *slow & set(sys.modules)))\n"
        f"sys.argv = ['ltmia', '{word}']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "slow:"


def test_public_names_load_when_they_are_used() -> None:
    code = (
        "import sys, ltmia\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "assert dir(ltmia) == ltmia.__all__ == sorted(ltmia.__all__)\n"
        "ltmia.Limit\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True)
    assert ltmia.compare is importlib.import_module("ltmia.evaluation.comparison").compare_audits
    assert ltmia.gate is importlib.import_module("ltmia.evaluation.gate").hold_against


def test_every_public_name_loads() -> None:
    for name in ltmia.__all__:
        assert getattr(ltmia, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ltmia.nothing


def test_attacks_with_passes_of_their_own_are_part_of_an_audit_when_asked(work: Path) -> None:
    for name, n_texts in (("members", 16), ("nonmembers", 24)):
        lines = (work / f"{name}.jsonl").read_text("utf-8").splitlines()[:n_texts]
        (work / f"few_{name}.jsonl").write_text("\n".join(lines), "utf-8")
    arguments = ("audit", "target", "--base", str(demo_base_path()), "--group-column", "document", "-o", "all")
    arguments += ("--members", "few_members.jsonl", "--nonmembers", "few_nonmembers.jsonl", "--max-length", "24")
    done = run(*arguments, "--attacks", "fast,lowercase,recall,con_recall,gradient_norm", cwd=work)
    assert done.returncode == 0, done.stderr
    attacks = read_results(work / "all").attacks
    assert attacks["gradient_norm"].auc.value > 0.55
    assert attacks["lowercase"].auc.value is not None
    records = pq.read_table(work / "all" / "records.parquet")
    unscored = np.isnan(records["score_con_recall"].to_numpy())
    assert 2 <= unscored.sum() <= 16, "the shots, and nothing else, are not scored"
    kept = (work / "all" / "private" / "multi_pass" / "recall.json").stat().st_mtime_ns
    assert run(*arguments, "--attacks", "fast,recall", "--overwrite", cwd=work).returncode == 0
    assert (work / "all" / "private" / "multi_pass" / "recall.json").stat().st_mtime_ns == kept


def test_texts_are_written_only_when_asked(work: Path) -> None:
    arguments = ("audit", "target", "--base", str(demo_base_path()), *AUDIT, "-o", "revealed", "--attacks", "loss")
    assert run(*arguments, "--reveal", cwd=work).returncode == 0
    records = pq.read_table(work / "revealed" / "records.parquet")
    assert records["text"].to_pylist() == [demo_texts().texts[i] for i in (*MEMBERS, *NONMEMBERS)]
    assert "text" not in pq.read_table(work / "audit" / "records.parquet").column_names


def test_in_memory_scores_include_multi_pass_attacks_given_shots(work: Path) -> None:
    pair = load_pair(work / "target", demo_base_path())
    texts = list(demo_texts().texts[:12])
    shots = Shots(nonmembers=demo_texts().texts[100:104], members=demo_texts().texts[20:24])
    table = score_texts(pair, texts, attacks="lowercase,recall,con_recall,neighbourhood", shots=shots, max_length=24)
    assert all(np.isfinite(scores).all() for scores in table.values())
    with pytest.raises(ConfigError, match="non-members"):
        score_texts(pair, texts, attacks="recall")


def test_candidates_are_scored_without_labels(work: Path) -> None:
    arguments = (
        "--base",
        str(demo_base_path()),
        "--nonmembers",
        "nonmembers.jsonl",
        "--group-column",
        "document",
        *SHORT,
    )
    done = run("score", "target", "--candidates", "members.jsonl", *arguments, "-o", "score", cwd=work)
    assert done.returncode == 0, done.stderr
    results = read_results(work / "score")
    assert results.kind == "score"
    assert results.attacks == {}
    assert results.set_test.p_value < 0.05
    assert "a candidate scores above" in results.verdict
    records = pq.read_table(work / "score" / "records.parquet")
    assert records["label"].to_pylist() == [None] * len(MEMBERS) + [0] * len(NONMEMBERS)
    assert "<html" in (work / "score" / "report.html").read_text("utf-8")
    gate = run("gate", "score", "--max", "auc:0.6", cwd=work)
    assert gate.returncode == 3, gate.stderr


def test_compare_and_gate_read_finished_audits(work: Path) -> None:
    done = run("compare", "audit", "audit", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "cannot tell" in done.stdout
    assert run("gate", "audit", "--max", "auc:0.5", cwd=work).returncode == 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_command_exits_2_with_one_message(name: str) -> None:
    code = (
        "import os, signal; from ltmia.cli import app as cli; from ltmia.__main__ import main; import sys\n"
        f"cli.app.command('wait')(lambda: os.kill(os.getpid(), signal.{name}))\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background\n"
        "sys.argv = ['ltmia', 'wait']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "ltmia: interrupted; the same command resumes"
