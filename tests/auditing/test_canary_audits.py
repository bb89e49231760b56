"""Audits with canaries: more copies are recognised better, the bounds hold, and what does not fit is refused."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.canaries import CanarySubject, audit_canaries
from ltmia.auditing.text_sets import join_sets
from ltmia.canaries.key import CanaryKey
from ltmia.canaries.make import CanaryConfig, make_canaries
from ltmia.cli.app import app
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.reading import read_texts
from ltmia.errors import ConfigError
from ltmia.evaluation.epsilon import epsilon_lower_bound
from ltmia.evaluation.files import read_results
from ltmia.evaluation.roc import auc
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_alone, load_model, load_pair, load_tokenizer
from ltmia.models.pair import Pair
from ltmia.records import Texts

BASE, OPTIONS = str(demo_base_path()), LoadOptions(dtype="float32", device="cpu")
TUNING = FinetuneConfig(epochs=1, learning_rate=1e-3, max_length=24)
CANARIES = CanaryConfig(n_canaries=120, repeats=(1, 12), n_tokens=16)
runner = CliRunner()


def config(**options: object) -> AuditConfig:
    return AuditConfig(**{"attacks": "difference,loss", "max_length": 24} | options)


def tune(texts: Texts, out: Path, tuning: FinetuneConfig = TUNING) -> Pair:
    model, _ = load_model(BASE, OPTIONS)
    finetune(model, load_tokenizer(BASE, OPTIONS), texts, tuning, out)
    return load_pair(out, BASE, dtype="float32", device="cpu")


@dataclass(frozen=True)
class Made:
    folder: Path
    pair: Pair
    key: CanaryKey


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model that was trained on 60 texts and canaries, and an audit with these."""
    folder = tmp_path_factory.mktemp("canaries")
    rows = [{"text": " ".join(text.split()[:12])} for text in demo_texts().texts[:60]]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = make_canaries(
        load_alone(BASE, options=OPTIONS), folder / "train.jsonl", folder / "canaries", read_texts, config=CANARIES
    )
    pair = tune(read_texts(found.training_file), folder / "target")
    audit_canaries(pair, folder / "canaries", folder / "audit", read_texts, config=config())
    return Made(folder, pair, found.key)


def test_the_table_is_what_the_records_say_and_rises_with_the_copies(made: Made) -> None:
    results, key = read_results(made.folder / "audit"), made.key
    assert (results.data.n_members, results.data.n_nonmembers) == (len(key.members), len(key.nonmembers))
    rows = results.canaries.by_repeats
    assert [row.repeats for row in rows] == [1, 12]
    records = pq.read_table(made.folder / "audit" / "records.parquet").to_pylist()
    scores = {row["id"]: row[f"score_{results.decisions.attack}"] for row in records}
    left_out = np.array([scores[name] for name in key.nonmembers.ids])
    for row in rows:
        there, not_there = (
            np.array([
                scores[name]
                for name, inserted, repeats in zip(key.texts.ids, key.inserted, key.repeats, strict=True)
                if inserted == wanted and repeats == row.repeats
            ])
            for wanted in (True, False)
        )  # fmt: skip
        assert (row.n_inserted, row.n_left_out) == (len(there), len(not_there))
        assert row.auc.value == pytest.approx(auc(there, left_out))
        assert row.epsilon == epsilon_lower_bound(there, not_there, by_coins=True)
        assert row.epsilon_of_a_copy.value == pytest.approx(row.epsilon.value / row.repeats)
    assert rows[0].auc.value < rows[1].auc.value
    assert rows[1].auc.low > 0.8
    assert rows[1].epsilon.value > 1
    assert results.epsilon == rows[0].epsilon_of_a_copy
    assert rows[0].tpr_at_fpr["0.1"].value is None
    assert "100 are needed" in rows[0].tpr_at_fpr["0.1"].reason
    assert results.verdict.startswith("The texts are canaries")


def test_the_command_resumes_prints_the_table_and_shows_the_bound_of_another_audit(made: Made) -> None:
    texts = demo_texts().texts
    natural = audit(made.pair, texts[:60], texts[60:120], made.folder / "natural", config=config()).results
    arguments = ["canaries", "audit", str(made.folder / "target"), "--base", BASE, "--attacks", "difference,loss"]
    arguments += ["--canaries", str(made.folder / "canaries"), "--max-length", "24", "-o", str(made.folder / "audit")]
    done = runner.invoke(app, [*arguments, "--beside", str(made.folder / "natural")])
    assert done.exit_code == 0, done.output
    found = read_results(made.folder / "audit")
    assert found.reused[0].what == "store"
    assert found.canaries.natural.run_id == natural.run_id
    assert found.canaries.natural.epsilon == natural.epsilon
    assert "Copies  Inserted  Left out  AUC" in done.output
    assert "With texts of your own, 60 members and 60 non-members: ε ≥ " in done.output
    page = (made.folder / "audit" / "report.html").read_text("utf-8")
    assert "Canaries by number of copies" in page
    assert not any(text in page for text in made.key.texts.texts)
    gate = runner.invoke(app, ["gate", str(made.folder / "audit"), "--max", "auc:0.6"])
    assert gate.exit_code in (1, 3)


def test_other_targets_and_other_canaries_are_refused(made: Made) -> None:
    folder, rival = made.folder, made.folder / "rival"
    pair = load_pair(BASE, BASE, dtype="float32", device="cpu")
    texts = demo_texts().texts
    audit(pair, texts[:30], texts[60:90], rival, config=config())
    with pytest.raises(ConfigError, match="`beside` is an audit of another target"):
        audit_canaries(made.pair, folder / "canaries", folder / "new", read_texts, beside=rival, config=config())
    with pytest.raises(ConfigError, match="expected the folder of an audit of natural texts"):
        audit_canaries(
            made.pair, folder / "canaries", folder / "new", read_texts, beside=folder / "audit", config=config()
        )
    with pytest.raises(ConfigError, match="lies inside"):
        audit_canaries(made.pair, folder / "canaries", folder / "canaries" / "audit", read_texts, config=config())
    with pytest.raises(ConfigError, match="deduplicate"):
        audit_canaries(made.pair, folder / "canaries", folder / "new", read_texts, config=config(deduplicate=True))
    others = make_canaries(
        load_alone(BASE, options=OPTIONS),
        folder / "train.jsonl",
        folder / "others",
        read_texts,
        config=CanaryConfig(n_canaries=40, n_tokens=16, seed=1),
    )
    with pytest.raises(ConfigError, match="an audit of other texts, ids, canaries"):
        audit_canaries(made.pair, folder / "others", folder / "audit", read_texts, config=config())
    found = audit_canaries(made.pair, folder / "others", folder / "chance", read_texts, config=config()).results
    assert found.canaries.by_repeats[0].auc.low < 0.5 < found.canaries.by_repeats[0].auc.high  # not trained on these
    assert len(others.key.texts) == 40


@pytest.mark.parametrize("inserted", [0, 40])
def test_if_a_coin_falls_on_one_side_only_nothing_is_made_up(made: Made, inserted: int) -> None:
    there = (True,) * inserted + (False,) * (40 - inserted)
    key = CanaryKey(
        texts=made.key.texts.take(range(40)),
        inserted=there,
        repeats=(1, 12) * 20,
        settings=made.key.settings,
        training_file="as written",
    )
    sets = join_sets(key.members, key.nonmembers, "members")
    [row, _] = CanarySubject(key=key, sha256="").sections(sets, np.arange(40.0), 0)["canaries"].by_repeats
    assert row.auc.value is None
    assert "no scorable" in row.auc.reason
    assert row.n_inserted == inserted / 2


@pytest.mark.slow
def test_private_training_spends_no_less_than_the_bound(tmp_path: Path) -> None:
    pytest.importorskip("opacus", reason='Opacus is not installed: pip install "ltmia[dp]" to run this test')
    from ltmia.finetuning.privacy import PRIVACY_FILE, DpConfig

    (tmp_path / "train.txt").write_text("\n".join(" ".join(text.split()[:12]) for text in demo_texts().texts[:60]))
    options = CanaryConfig(n_canaries=300, repeats=(1,), n_tokens=16)
    loaded = load_alone(BASE, options=OPTIONS)
    found = make_canaries(loaded, tmp_path / "train.txt", tmp_path / "canaries", read_texts, config=options)
    texts = read_texts(found.training_file)
    bounds = {}
    for name, dp in (("open", None), ("private", DpConfig(epsilon=1.0, delta=0.1 / len(texts)))):
        tuning = FinetuneConfig(epochs=8, learning_rate=3e-3, max_length=24, dp=dp)
        pair = tune(texts, tmp_path / name, tuning)
        out = tmp_path / f"audit-{name}"
        bounds[name] = audit_canaries(pair, tmp_path / "canaries", out, read_texts, config=config()).results.epsilon
    spent = json.loads((tmp_path / "private" / PRIVACY_FILE).read_text("utf-8"))["epsilon"]
    assert bounds["private"].value <= spent <= 1.0
    assert bounds["open"].value > 1.5 > spent
