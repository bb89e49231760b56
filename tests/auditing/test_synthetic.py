"""Audits of synthetic texts: copies are counted, the members' trace is found, and the same command resumes."""

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from ltmia.auditing import synthetic as auditing
from ltmia.auditing.audit import AuditConfig
from ltmia.auditing.synthetic import SyntheticSubject, audit_synthetic, count_copies
from ltmia.auditing.text_sets import as_texts
from ltmia.cli.app import app
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.errors import ConfigError
from ltmia.evaluation.comparison import compare_audits
from ltmia.evaluation.files import read_records, read_results
from ltmia.finetuning.config import FinetuneConfig
from ltmia.report.notebook import results_html

BASE = str(demo_base_path())
WORDS = 16
TEXTS = [" ".join(text.split()[:WORDS]) for text in demo_texts().texts[:120]]
MEMBERS, NONMEMBERS = TEXTS[:30], TEXTS[60:90]
TUNING = FinetuneConfig(epochs=2, learning_rate=1e-3, max_length=32)


def config(**options: object) -> AuditConfig:
    return AuditConfig(**{"attacks": "difference", "max_length": 32} | options)


def test_copies_are_counted_as_a_plain_loop_finds_them() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(60)]
    synthetic = [
        *(f"He said: {text.upper()} again" for text in texts[:5]),  # whole, in other letters
        texts[5],
        *(" ".join(text.split()[:10]) for text in texts[6:9]),  # 3 of 5 word 8-grams
        *(" ".join(text.split()[:8]) for text in texts[9:12]),  # 1 of 5
        *(f"{text}er" for text in texts[12:14]),  # the last word goes on: not whole, but 4 of 5
    ]

    def by_hand(text: str) -> str:
        own = text.split()
        if any(f" {text} " in f" {other.lower()} " for other in synthetic):
            return "verbatim"
        grams = {tuple(own[i : i + 8]) for i in range(5)}
        seen = {tuple(o.lower().split()[i : i + 8]) for o in synthetic for i in range(len(o.split()) - 7)}
        return "near" if len(grams & seen) / len(grams) > 0.3 else ""

    kinds = [by_hand(text) for text in texts]
    found = count_copies(tuple(texts), tuple(synthetic))
    assert (found.n_texts, found.n_verbatim, found.n_near) == (60, kinds.count("verbatim"), kinds.count("near"))
    assert (found.n_verbatim, found.n_near) == (6, 5)
    short = count_copies(("yes", "", "no idea"), ("Yes", "yes we can", ""))  # too short for an 8-gram, or empty
    assert (short.n_verbatim, short.n_near) == (1, 0)


def shown_by_other_commands(audit: Path, folder: Path) -> dict[str, str]:
    """What gate, card, annex, comparison and notebook say of an audit, by name."""
    commands = {
        "gate": ["--max", "auc:1", "--summary", "gate.md", "--junit", "gate.xml"],
        "gate --json": [],
        "card": ["--into", "card.md"],
        "annex": ["-o", "annex.md"],
        "compare": [str(audit), "--html", "compare.html"],
    }
    shown = {}
    for name, options in commands.items():
        command, *more = name.split()
        paths = [str(folder / option) if "." in option else option for option in options]
        shown[name] = CliRunner().invoke(app, [command, str(audit), *more, *paths]).output
    files = ("gate.md", "gate.xml", "card.md", "annex.md", "compare.html")
    written = {name: (folder / name).read_text("utf-8") for name in files}
    said = {name: shown[name] for name in ("gate", "gate --json", "compare")}
    return said | written | {"notebook": results_html(read_results(audit), audit)}


def test_the_trace_is_found_named_as_synthetic_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, texts in (("members", MEMBERS), ("others", NONMEMBERS), ("written", [*MEMBERS[:20], *TEXTS[100:]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = ["synthetic", str(tmp_path / "written.jsonl"), "--members", str(tmp_path / "members.jsonl")]
    command += ["--nonmembers", str(tmp_path / "others.jsonl"), "--base", BASE, "-o", str(tmp_path / "audit")]
    command += ["--epochs", "2", "--learning-rate", "1e-3", "--max-length", "32", "--attacks", "difference"]
    runner = CliRunner()
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    results = read_results(tmp_path / "audit")
    assert (results.synthetic.n_texts, results.synthetic.epochs) == (40, 2)
    assert results.synthetic.members.n_verbatim == 20
    assert results.synthetic.nonmembers.n_verbatim == 0
    assert results.attacks["difference"].auc.low > 0.6
    for said in (done.output, results.verdict, (tmp_path / "audit" / "report.html").read_text("utf-8")):
        assert "These figures are of synthetic data" in said
        assert "20 of 30 members stand word for word" in said
    shown = shown_by_other_commands(tmp_path / "audit", tmp_path)
    assert [name for name, text in shown.items() if "These figures are of synthetic data" not in text] == []
    records = read_records(tmp_path / "audit")
    column = records.column_names.index("score_difference")
    reversed_ = records.set_column(column, "score_difference", pc.negate(records["score_difference"]))
    for other, doubt in (
        (None, "Only one"),
        (results.synthetic.model_copy(update={"epochs": 9}), "different auxiliary"),
    ):
        second = results.model_copy(update={"synthetic": other}), reversed_
        compared = compare_audits((results, records), second, same_texts=True)
        assert compared.lower_leakage == "cannot tell"
        assert doubt in compared.doubts[-1]
    monkeypatch.setattr(auditing, "finetune", None)  # would fail if it were called
    assert runner.invoke(app, command).exit_code == 0
    assert read_results(tmp_path / "audit").reused
    refused = runner.invoke(app, [*command, "--epochs", "3"])
    assert isinstance(refused.exception, ConfigError)
    assert "other settings of the fine-tune" in str(refused.exception)
    assert "other settings: dtype" in str(runner.invoke(app, [*command, "--dtype", "bfloat16"]).exception)
    (tmp_path / "written.jsonl").write_text('{"text": "Something else was written here."}\n' * 3)
    refused = runner.invoke(app, command)
    assert "other synthetic texts" in str(refused.exception)
    (tmp_path / "written.jsonl").write_text('{"text": " "}\n{"text": ""}\n')
    assert "hold no word" in str(runner.invoke(app, command).exception)


def test_without_members_in_them_synthetic_texts_tell_nothing(tmp_path: Path) -> None:
    subject = SyntheticSubject(texts=as_texts(TEXTS[90:]), base=BASE, tuning=TUNING)
    sets = as_texts(MEMBERS), as_texts(NONMEMBERS)
    found = audit_synthetic(subject, sets, tmp_path / "audit", config=config()).results
    auc = found.attacks["difference"].auc
    assert auc.low < 0.5 < auc.high
    assert (found.synthetic.members.n_verbatim, found.synthetic.members.n_near) == (0, 0)
    model = tmp_path / "audit" / "private" / "auxiliary" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="was changed since ltmia wrote it"):
        audit_synthetic(subject, sets, tmp_path / "audit", config=config())
