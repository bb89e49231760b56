"""An audit in a model card: read back with huggingface_hub, and compared with results.json as plain JSON."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from audit_figures import expected_figures
from commands import run_ltmia
from ltmia.errors import ConfigError, DataError
from ltmia.integrations.card import drift, write_card
from report_samples import HOSTILE, made_up_audit

OTHERS = """\
---
license: mit   # asked our lawyers
tags: [a,   "b"]
model-index:
- name: letters
  results:
  - task: {type: text-generation}
    dataset: {type: wikitext, name: Wikitext}
    metrics:
    - {type: perplexity, value: 12.5}
# the language comes last
language: en
---
# Letters

A model of letters.
"""
CARDS = {
    "none": "",
    "plain text": "# Letters\n\nA model of letters.",
    "front matter": OTHERS,
    "front matter alone": "---\nlicense: mit\n---",
    "Windows": OTHERS.replace("\n", "\r\n"),
    "BOM": "\ufeff" + OTHERS,
    "index first, on one line": "---\nmodel-index: []  # none yet\nlicense: mit\n---\ntext\n",
    "index last": "---\nlicense: mit\nmodel-index:\n- name: x\n  results: []\n---\ntext\n",
    "a block of text": "---\nmodel-index:\n- name: |\n    two\n    lines\n  results: []\nlicense: mit\n---\ntext\n",
    "rules in the text": "---\nlicense: mit\n---\ntext\n\n---\n\nmore: text\n---\n",
}


def without_ours(content: str) -> tuple[str, object]:
    """Text without the section, and the front matter as values without our metrics."""
    content = content.removeprefix("\ufeff").replace("\r\n", "\n")
    front, text = (
        re.match(r"(?s)---\n(.*?)\n?---\n?(.*)", content).groups() if content[:4] == "---\n" else ("", content)
    )
    values = yaml.safe_load(front) or {}
    for model in values.get("model-index") or []:
        model["results"] = [result for result in model["results"] if result["dataset"]["type"] != "ltmia-audit"]
    if not any(model["results"] or model["name"] != "card" for model in values.get("model-index") or []):
        values.pop("model-index", None)
    return re.sub(r"(?s)<!-- ltmia audit: begin -->.*<!-- ltmia audit: end -->", "", text).strip(), values


@pytest.mark.parametrize("name", CARDS)
def test_card_loads_again_and_keeps_what_others_wrote(name: str, materials: Path, tmp_path: Path) -> None:
    card = tmp_path / "card" / "README.md"
    if CARDS[name]:
        card.parent.mkdir()
        card.write_bytes(CARDS[name].encode())
    write_card(materials / "audit", card)
    loaded = ModelCard.load(card)
    ours = {r.metric_type: r.metric_value for r in loaded.data.eval_results if r.dataset_type == "ltmia-audit"}
    assert ours == {name: value for name, (value, *_) in expected_figures(materials / "audit").items()}
    [auc] = [r for r in loaded.data.eval_results if r.metric_type == "attacks/loss/auc"]
    assert auc.metric_args == dict(
        zip(("low", "high"), expected_figures(materials / "audit")["attacks/loss/auc"][1:], strict=True)
    )
    assert "## Memorisation audit" in loaded.text
    new = card.read_bytes().decode()
    assert without_ours(new) == without_ours(CARDS[name])
    assert new.startswith("\ufeff") == CARDS[name].startswith("\ufeff")
    assert ("\r\n" in new) == ("\r\n" in CARDS[name])
    assert "\n" not in new.replace("\r\n", "") or "\r\n" not in new
    for comment in re.findall(r"#\s?(?:asked our lawyers|the language comes last|none yet)", CARDS[name]):
        assert comment in new
    assert drift(materials / "audit", card) == []
    write_card(materials / "audit", card)
    assert card.read_bytes().decode() == new


def test_drift_is_an_exit_code(materials: Path, tmp_path: Path) -> None:
    card, folder = tmp_path / "README.md", tmp_path / "audit"
    card.write_text(OTHERS, "utf-8")
    shutil.copytree(materials / "audit", folder, ignore=shutil.ignore_patterns("private"))

    def check() -> tuple[int, str]:
        done = run_ltmia("card", str(folder), "--into", str(card), "--check")
        return done.returncode, done.stdout

    code, said = check()
    assert code == 1
    assert said.count(str(card)) >= 2
    assert card.read_text("utf-8") == OTHERS
    assert run_ltmia("card", str(folder), "--into", str(card)).returncode == 0
    assert check()[0] == 0
    good = card.read_text("utf-8")
    value = json.loads((folder / "results.json").read_text("utf-8"))["attacks"]["ltmia"]["auc"]["value"]
    card.write_text(good.replace(f"value: {value!r}", "value: 0.5", 1), "utf-8")
    code, said = check()
    assert (code, "metrics" in said, "section" in said) == (1, True, False)
    card.write_text(good.replace(f"{value:.3f}", "0.500"), "utf-8")
    code, said = check()
    assert (code, "metrics" in said, "section" in said) == (1, False, True)
    card.write_text(good, "utf-8")
    results = (folder / "results.json").read_text("utf-8")
    (folder / "results.json").write_text(results.replace(repr(value), "0.5125", 1), "utf-8")
    assert check()[0] == 2, "the results were edited"
    older = re.sub(r'"content_sha256": "\w+"', '"content_sha256": null', results)
    (folder / "results.json").write_text(older.replace(repr(value), "0.5125", 1), "utf-8")
    assert check()[0] == 1
    card.unlink()
    assert check()[0] == 2


def test_nothing_private_gets_in(materials: Path, tmp_path: Path) -> None:
    write_card(materials / "audit", tmp_path / "README.md")
    card = (tmp_path / "README.md").read_text("utf-8")
    for name in ("train.jsonl", "held-out.jsonl"):
        for row in map(json.loads, (materials / name).read_text("utf-8").splitlines()):
            assert row["id"] not in card
            assert row["document"] not in card
            assert row["text"][:30] not in card
    assert str(materials) not in card


def test_strings_of_a_results_file_are_shown_not_obeyed(tmp_path: Path) -> None:
    folder = made_up_audit(tmp_path / "audit", 60, names=(*HOSTILE[:4], "<!-- ltmia audit: end -->", "a | b\n## c"))
    write_card(folder, tmp_path / "README.md")
    text = ModelCard.load(tmp_path / "README.md").text
    assert "<script" not in text
    assert text.count("<!--") == 2
    assert text.count("\n## ") == 1
    assert drift(folder, tmp_path / "README.md") == []


@pytest.mark.parametrize(
    "content",
    [
        "---\n- a\n---\ntext",
        "---\na: [\n---\ntext",
        "---\nmodel-index: {name: x}\n---\n",
        "---\nmodel-index: [{name: x}]\n---\n",
        "---\nmodel-index: []\nmodel-index: []\n---\n",
        "---\nmodel-index: &all []\nother: *all\n---\n",
        "<!-- ltmia audit: begin -->\n",
        "<!-- ltmia audit: end --><!-- ltmia audit: begin -->\n",
    ],
)
def test_a_damaged_card_is_refused_and_kept(content: str, materials: Path, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(content, "utf-8")
    with pytest.raises(DataError, match="README"):
        write_card(materials / "audit", card)
    assert card.read_text("utf-8") == content


def test_a_link_is_not_written_through(materials: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_text(OTHERS, "utf-8")
    (tmp_path / "README.md").symlink_to("blob")
    with pytest.raises(ConfigError, match="a link"):
        write_card(materials / "audit", tmp_path / "README.md")
    assert (tmp_path / "blob").read_text("utf-8") == OTHERS
