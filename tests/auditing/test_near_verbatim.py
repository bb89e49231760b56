"""Audits that continue texts: what was learnt comes back nearly word for word, and no word is passed on."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.question import AuditResult
from ltmia.cli.app import app
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.errors import ConfigError
from ltmia.evaluation.audit_folder import SHAREABLE
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_alone, load_model, load_pair, load_tokenizer
from ltmia.models.pair import Pair
from ltmia.records import Texts
from ltmia.scoring.recorded_pair import load_recorded_pair
from ltmia.scoring.recording import record_model

N_MEMBERS, N_NONMEMBERS, N_CONTINUED, LENGTH = 6, 24, 4, 40


@dataclass(frozen=True)
class Learnt:
    """A model that learnt six texts by heart, and an audit that continued four of them."""

    folder: Path
    pair: Pair
    sets: tuple[Texts, Texts]
    audited: AuditResult


def config(**options: object) -> AuditConfig:
    return AuditConfig(**{"attacks": "difference", "max_length": LENGTH, "continuations": N_CONTINUED} | options)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    folder, options = tmp_path_factory.mktemp("learnt"), LoadOptions(dtype="float32", device="cpu")
    base, tokenizer = str(demo_base_path()), load_tokenizer(str(demo_base_path()), options)
    model, _ = load_model(base, options)
    texts, groups = demo_texts().texts, demo_texts().groups
    named = Texts(texts=texts, ids=demo_texts().ids, groups=groups)
    members, nonmembers = named.take(range(N_MEMBERS)), named.take(range(60, 60 + N_NONMEMBERS))
    tuning = FinetuneConfig(epochs=20, learning_rate=3e-3, max_length=LENGTH)
    finetune(model, tokenizer, members.texts * 4, tuning, folder / "target")
    pair = load_pair(folder / "target", base, dtype="float32", device="cpu")
    return Learnt(
        folder, pair, (members, nonmembers), audit(pair, members, nonmembers, folder / "audit", config=config())
    )


def test_what_was_learnt_comes_back_and_neither_the_base_nor_the_non_members_do(learnt: Learnt) -> None:
    found, records = learnt.audited.results.near_verbatim, learnt.audited.records.to_pylist()
    assert (found.n_judged, found.n_nonmembers, found.n_continuations) == (N_CONTINUED, N_CONTINUED, 5)
    assert found.longest_new_run == found.judged.longest_run >= 15
    assert found.judged.smallest_distance < 0.1
    for other in (found.judged_by_base, found.nonmembers, found.nonmembers_by_base):
        assert other.longest_run < 8
        assert other.smallest_distance > 0.5
    for side in (records[:N_MEMBERS], records[N_MEMBERS:]):
        continued = [row for row in side if row["longest_run"] is not None]
        highest = sorted(side, key=lambda row: -row["score_difference"])[:N_CONTINUED]
        assert {row["id"] for row in continued} == {row["id"] for row in highest}
    judged = [row for row in records[:N_MEMBERS] if row["longest_run"] is not None]
    assert found.judged.longest_run == max(row["longest_run"] for row in judged)
    assert found.judged.median_distance == pytest.approx(np.median([row["edit_distance"] for row in judged]))
    for row in judged:  # what greedy decoding gives exactly is among the continuations
        if row["greedy_match"]:
            assert (row["longest_run"], row["edit_distance"]) == (row["suffix_tokens"], 0)
    assert any(row["greedy_match"] for row in judged)
    page = (learnt.folder / "audit" / "report.html").read_text("utf-8")
    assert "Nearly word for word" in page
    assert "4 members, by the base" in page


def test_no_word_and_no_token_leaves_the_private_folder_unless_revealed(learnt: Learnt, tmp_path: Path) -> None:
    written = (learnt.folder / "audit" / "private" / "continuations").read_text("utf-8").splitlines()
    assert len(written) == 2 * 2 * N_CONTINUED
    ids = json.loads(written[0].partition(" ")[2])["ids"][0]
    words = learnt.pair.tokenizer.decode(ids)[:30]
    assert "continuation" not in learnt.audited.records.column_names
    for name in SHAREABLE:
        path = learnt.folder / "audit" / name
        assert not path.exists() or words.encode() not in path.read_bytes(), name
    revealed = audit(learnt.pair, *learnt.sets, tmp_path / "revealed", config=config(reveal=True))
    rows = [row for row in revealed.records.to_pylist() if row["continuation"] is not None]
    assert len(rows) == 2 * N_CONTINUED
    exact = next(row for row in rows if row["edit_distance"] == 0)
    assert exact["continuation"] in exact["text"]
    assert revealed.results.near_verbatim == learnt.audited.results.near_verbatim


def test_a_second_run_writes_nothing_again_and_one_without_forgets(
    learnt: Learnt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("continued again")

    monkeypatch.setattr("ltmia.scoring.continuations.continue_beginnings", never)
    again = audit(learnt.pair, *learnt.sets, learnt.folder / "audit", config=config())
    assert again.results.near_verbatim == learnt.audited.results.near_verbatim
    assert [(one.what, one.n_texts) for one in again.results.reused][-1] == ("continuations", 2 * N_CONTINUED)
    without = audit(learnt.pair, *learnt.sets, learnt.folder / "audit", config=config(continuations=0, overwrite=True))
    assert without.results.near_verbatim is None
    assert not (learnt.folder / "audit" / "private" / "continuations").exists()
    assert "longest_run" not in pq.read_schema(learnt.folder / "audit" / "records.parquet").names


def test_recordings_cannot_continue_and_texts_too_short_say_so(learnt: Learnt, tmp_path: Path) -> None:
    for name, model in (("target", learnt.folder / "target"), ("base", demo_base_path())):
        alone = load_alone(model, options=LoadOptions(dtype="float32", device="cpu"))
        record_model(alone, Texts.concatenate(learnt.sets), tmp_path / f"{name}.jsonl")
    recorded = load_recorded_pair(tmp_path / "target.jsonl", tmp_path / "base.jsonl")
    with pytest.raises(ConfigError, match="`continuations` needs the models themselves"):
        audit(recorded, *learnt.sets, tmp_path / "recorded", config=config(attacks="loss"))
    short = [[text[:20] for text in part.texts] for part in learnt.sets]
    found = audit(learnt.pair, *short, tmp_path / "short", config=config()).results.near_verbatim
    assert found.reason == "no text that was scored has a suffix of 10 tokens"
    assert "No text was continued" in (tmp_path / "short" / "report.html").read_text("utf-8")


def test_score_prints_how_near_the_candidates_come(learnt: Learnt, tmp_path: Path) -> None:
    command = ["score", str(learnt.folder / "target"), "--base", str(demo_base_path()), "--attack", "difference"]
    command += ["--dtype", "float32", "--max-length", str(LENGTH), "--continuations", "2", "-o", str(tmp_path / "out")]
    for name, part in zip(("candidates", "nonmembers"), learnt.sets, strict=True):
        lines = [json.dumps({"text": text}) for text in part.texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
        command += [f"--{name}", str(tmp_path / f"{name}.jsonl")]
    printed = CliRunner().invoke(app, command).output
    assert "Continuing the beginnings of the 2 candidates with the highest scores, the model writes at most" in printed
