"""The privacy annex: its figures are those of results.json, it answers three questions, and its hashes hold."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from audit_figures import expected_figures
from commands import run_ltmia
from ltmia.errors import ConfigError
from ltmia.evaluation.drawn_out import Extractable, Extraction
from ltmia.evaluation.files import read_results
from ltmia.evaluation.section import Measure
from ltmia.integrations.annex import POINTS, Context, answers, read_context, write_annex
from report_samples import HOSTILE, made_up_audit

STATES = {"measured", "declared by the user", "not applicable", "not evaluated"}
CONTEXT = """\
[declared]
access = "Weights, to two hospitals under contract"
sources = "Letters of the years 2019 to 2023"
membership = "Repeated by an outside laboratory"

[not_applicable]
outputs = "The model is not served"
"""


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_audit(tmp_path_factory.mktemp("made-up") / "audit", 400, attacks=3)


def annex_of(folder: Path, out: Path, context: str = "") -> str:
    (out.parent / "context.toml").write_text(context, "utf-8")
    write_annex(folder, out, read_context(out.parent / "context.toml"))
    return out.read_text("utf-8")


def plain(text: str) -> str:
    """Markdown without its escapes."""
    return re.sub(r"\\(.)", r"\1", text)


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\|.+\|$", plain(text), re.M)]


def test_every_figure_is_that_of_the_results(audit: Path, tmp_path: Path) -> None:
    rows = {row[0]: row[1:] for row in cells(annex_of(audit, tmp_path / "annex.md"))}
    for name, (value, low, high) in expected_figures(audit).items():
        if name.startswith("attacks/"):
            _, attack, figure = name.split("/", 2)
            row = rows[attack if attack != "bag_of_words" else "bag_of_words (control: sees no model)"]
            shown = row[["auc", "tpr_at_fpr/0.1", "tpr_at_fpr/0.01", "tpr_at_fpr/0.001"].index(figure)]
            assert shown == f"{value:.3f} [{low:.3f}, {high:.3f}]"
    decisions = json.loads((audit / "results.json").read_text("utf-8"))["decisions"]
    assert f"{decisions['n_flagged']} of {decisions['n_judged']}" in annex_of(audit, tmp_path / "annex.md")


def test_each_point_has_one_state(audit: Path, tmp_path: Path) -> None:
    text = annex_of(audit, tmp_path / "annex.md", CONTEXT)
    rows = {row[0]: row[1:] for row in cells(text)}
    found = {point.key: rows[point.asks][1] for point in POINTS}
    assert set(found.values()) == STATES
    assert found["membership"] == "measured"
    assert "an outside laboratory" in text
    assert (found["access"], found["sources"]) == ("declared by the user", "declared by the user")
    assert found["outputs"] == "not applicable"
    for key in ("regurgitation", "extraction", "inversion", "reconstruction", "attributes", "membership_weights"):
        assert found[key] == "not evaluated"
    undeclared = {cell for row in cells(annex_of(audit, tmp_path / "annex.md")) for cell in row}
    assert undeclared & STATES == {"measured", "not evaluated"}


def test_what_can_be_drawn_out_is_measured_where_the_audit_has_it(audit: Path) -> None:
    none, some = Measure(value=0.0), Measure(value=0.125, low=0.1, high=0.2)
    drawn = Extractable(
        judged=some, nonmembers=none, judged_by_base=none, nonmembers_by_base=none, difference=some, n_new=25
    )
    found = Extraction(n_judged=200, n_nonmembers=200, within={"1000": drawn}, greedy=drawn)
    results = read_results(audit)
    for extraction, state in ((found, "measured"), (Extraction(reason="only scores"), "not evaluated")):
        answered = answers(results.model_copy(update={"extraction": extraction}), Context())
        [answer] = [answer for answer in answered if answer.point.key == "extraction"]
        assert answer.state == state
        assert ("12 % of 200 members" in answer.finding) == (state == "measured")


def test_the_first_page_answers_three_questions_and_gives_no_verdict(audit: Path, tmp_path: Path) -> None:
    text = plain(annex_of(audit, tmp_path / "annex.md", CONTEXT))
    first = text.split("## Point by point")[0]
    tried, left, change = re.split(r"^## .+$", first, flags=re.M)[1:]
    assert "200 members were judged against 200 non-members" in tried
    assert "ltmia" in tried
    for point in POINTS:
        assert (f"Not evaluated: {point.asks}." in left) == (f"| {point.asks} | {point.part} | not evaluated |" in text)
    assert "non-members" in change
    assert not re.search(r"\b(compliant|anonymous|GDPR-proof|safe)\b", text, re.I)


def test_hashes_are_recomputed(audit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    shutil.copytree(audit, folder)
    annex = tmp_path / "annex.html"
    assert run_ltmia("annex", str(folder), "-o", str(annex)).returncode == 0
    done = run_ltmia("verify", str(folder), "--annex", str(annex))
    assert done.returncode == 0
    for name in ("results.json", "records.parquet"):
        assert f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" in done.stdout
    results = (folder / "results.json").read_text("utf-8")
    edited = results.replace('"seconds": 1.0', '"seconds": 2.0', 1)
    (folder / "results.json").write_text(edited, "utf-8")
    done = run_ltmia("verify", str(folder))
    assert done.returncode == 2
    assert "results.json: content_sha256 does not match the rest of the file" in done.stderr
    without = re.sub(r'"content_sha256": "\w+"', '"content_sha256": null', edited)
    (folder / "results.json").write_text(without, "utf-8")
    done = run_ltmia("verify", str(folder), "--annex", str(annex))
    assert done.returncode == 1
    assert "other hashes for results.json, all of these" in done.stdout
    (folder / "results.json").unlink()
    assert run_ltmia("verify", str(folder), "--annex", str(annex)).returncode == 2
    (tmp_path / "empty.md").write_text("nothing", "utf-8")
    assert run_ltmia("verify", str(audit), "--annex", str(tmp_path / "empty.md")).returncode == 2


@pytest.mark.parametrize("ending", ["md", "html"])
def test_hostile_strings_are_shown_not_obeyed(ending: str, tmp_path: Path) -> None:
    folder = made_up_audit(tmp_path / "audit", 60, names=HOSTILE[:5])
    out = tmp_path / f"annex.{ending}"
    write_annex(folder, out, Context(declared={"access": HOSTILE[0] + " | x\n## y"}))
    text = out.read_text("utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert "\n## y" not in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[declared]\nacces = 'x'\n", "'acces': no such point; there are access"),
        ("[declared]\naccess = 1\n", "declared.access"),
        ("[said]\n", "said"),
        ("[declared\n", "expected TOML"),
        ("[declared]\naccess = 'x'\n[not_applicable]\naccess = 'y'\n", "keep one"),
    ],
)
def test_a_wrong_context_is_named(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "context.toml").write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=f"context.toml.*{re.escape(said)}"):
        read_context(tmp_path / "context.toml")


def test_only_an_annex_is_replaced(audit: Path, tmp_path: Path) -> None:
    out = tmp_path / "annex.md"
    write_annex(audit, out)
    write_annex(audit, out)
    out.write_text("my own", "utf-8")
    with pytest.raises(ConfigError, match="did not write this"):
        write_annex(audit, out)
    assert out.read_text("utf-8") == "my own"
    with pytest.raises(ConfigError, match=r"ends in \.md, \.html, \.pdf"):
        write_annex(audit, tmp_path / "annex.docx")


def test_pdf(audit: Path, tmp_path: Path) -> None:
    pytest.importorskip("weasyprint", reason="the extra pdf is not installed")
    write_annex(audit, tmp_path / "annex.pdf", Context(declared={"access": "two hospitals"}))
    write_annex(audit, tmp_path / "annex.pdf", Context())
    assert (tmp_path / "annex.pdf").read_bytes().startswith(b"%PDF")
