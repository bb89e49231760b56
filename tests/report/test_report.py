"""The report as text: a pure function of its files, small, and deaf to whatever strings it is given."""

import base64
import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.question import AuditResult
from ltmia.auditing.score import ScoreConfig, score
from ltmia.data.embedded import demo_texts
from ltmia.errors import DataError, StoreError
from ltmia.evaluation.files import read_audit, read_groups, read_records, read_results, read_tokens
from ltmia.evaluation.results import Check, Results, Validity
from ltmia.evaluation.token_bands import USUAL
from ltmia.features.store import FeatureStore
from ltmia.models.pair import Pair
from ltmia.report.figures import MOST_POINTS, OFF_AXIS, _thinned, plot_roc
from ltmia.report.page import render_report, template_environment, write_report
from ltmia.report.payload import embedded_json
from ltmia.report.slices import Records, group_slices, length_slices
from ltmia.report.terminal import print_results
from ltmia.report.words import CHECK_NAMES, PROBLEMS, attack_order
from report_samples import FIRST_NONMEMBER, HOSTILE, N_MEMBERS, N_NONMEMBERS, made_up_audit


class Page(HTMLParser):
    """Elements of a page, as a parser that is not a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def page_of(folder: Path) -> str:
    return write_report(folder).read_text("utf-8")


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page).group(1))


def test_the_same_files_give_the_same_bytes(audited: Path) -> None:
    files, groups = read_audit(audited), read_groups(audited)
    once, again = (render_report(*files, groups=groups) for _ in range(2))
    assert once == again == (audited / "report.html").read_text("utf-8")


def test_nothing_is_loaded_and_only_our_script_may_run(audited: Path) -> None:
    elements = Page(page_of(audited)).elements
    assert not [
        tag for tag, _ in elements if tag in {"link", "img", "iframe", "object", "embed", "base", "form[action]"}
    ]
    for tag, attributes in elements:
        assert "src" not in attributes, tag
        assert attributes.get("href", "#").startswith("#"), attributes
        assert not [name for name in attributes if name.startswith("on")], attributes
    policy = next(a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_ids_are_unique_and_references_exist(audited: Path) -> None:
    elements = Page(page_of(audited)).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in elements:
        for name in ("aria-labelledby", "href"):
            if attributes.get(name):
                assert attributes[name].removeprefix("#") in ids


def test_ten_thousand_records_stay_under_one_and_a_half_megabytes(tmp_path: Path) -> None:
    page = write_report(made_up_audit(tmp_path, 10_000, reveal=False))
    assert page.stat().st_size < 1_500_000
    data = data_of(page.read_text("utf-8"))
    assert len(data["id"]) == 10_000


def test_of_very_many_records_the_highest_scores_are_kept_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_up_audit(tmp_path, 400)
    monkeypatch.setattr("ltmia.report.payload.MOST_RECORDS", 100)
    data = data_of(page_of(folder))
    scores = read_records(folder)["score_ltmia"].to_numpy()
    assert data["total"] == 400
    shown = np.frombuffer(base64.b64decode(data["score"]), "<f4")
    np.testing.assert_allclose(np.sort(shown), np.sort(scores)[-100:], rtol=1e-6)
    ids = read_records(folder)["id"].to_pylist()
    assert set(data["id"]) == {ids[i] for i in np.argsort(-scores)[:100]}
    strip = data["strips"]["records"]
    assert strip
    assert [data["id"][i] for i in strip] == [ids[r] for r in range(300) if ids[r] in data["id"]][: len(strip)]


def test_what_the_script_reads_is_what_the_files_hold(audited: Path) -> None:
    data, records = data_of(page_of(audited)), read_records(audited)
    labels, scores = records["label"].to_numpy(), records["score_wbc"].to_numpy()
    below = np.frombuffer(base64.b64decode(data["above"]["wbc"]), "<u2") / 65_534
    expected = [(scores[labels == 0] < s).mean() for s in scores]
    np.testing.assert_allclose(below, expected, atol=1e-4)
    assert data["kind"] == "".join("MN"[1 - label] for label in labels)
    percent = np.frombuffer(base64.b64decode(data["bands"]["percent"]), "u1").reshape(-1, 4)
    for i, name in enumerate(USUAL):
        assert [None if p == 255 else p for p in percent[:, i]] == records[name].to_pylist(), name
    assert data["bands"]["third"] == "".join((t or "-")[0] for t in records["strongest_third"].to_pylist())
    assert "f" in data["bands"]["third"]


def test_bands_are_those_of_the_stored_numbers(audited: Path) -> None:
    records, store = read_records(audited), FeatureStore(audited / "private" / "store")
    ratios = [tokens.log_ratio.astype(np.float64) for tokens in store.statistics(range(len(records)))]
    edges = np.quantile(np.concatenate(ratios[N_MEMBERS:]), [0.5, 0.9, 0.99])
    for row, ratio in enumerate(ratios):
        above = [(ratio > edge).mean() for edge in edges]
        expected = [1 - above[0], above[0] - above[1], above[1] - above[2], above[2]]
        found = [records[name][row].as_py() for name in USUAL]
        if len(ratio) < 30:
            assert found == [None] * 4
        else:
            np.testing.assert_allclose(found, 100 * np.array(expected), atol=2.5 + 1e-6)


def test_revealed_tokens_are_those_of_the_files(revealed: Path) -> None:
    data, records, tokens = data_of(page_of(revealed)), read_records(revealed), read_tokens(revealed)
    first = data["strips"]["counts"][0]
    difference = np.frombuffer(base64.b64decode(data["strips"]["difference"]), "<i2")[:first] / 1000
    np.testing.assert_allclose(difference, tokens["difference"][0].as_py(), atol=6e-4)
    row = tokens["row"][0].as_py()
    assert row == int(np.argmax(records["score_ltmia"].to_numpy()))
    assert first == records["n_tokens"][row].as_py()
    # The mean of the token differences is the score that is called so.
    assert np.mean(tokens["difference"][0].as_py()) == pytest.approx(records["score_difference"][row].as_py(), abs=5e-3)


def test_no_text_and_no_token_is_anywhere_without_reveal(audited: Path, pair: Pair) -> None:
    texts = (
        *demo_texts().texts[:N_MEMBERS],
        *demo_texts().texts[FIRST_NONMEMBER : FIRST_NONMEMBER + N_NONMEMBERS],
    )
    passages = {text[40:64].encode() for text in texts}
    words = {w for text in texts for w in re.findall(r"[a-z]{9,}", text)}
    for path in audited.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            assert set(table.column_names) & {"text", "token", "token_ids"} == set()
            strings = [name for name in table.column_names if pa.types.is_string(table.schema.field(name).type)]
            assert set(strings) <= {"id", "group", "reason", "strongest", "strongest_third"}, path
            lists = [
                table.schema.field(n).type for n in table.column_names if pa.types.is_list(table.schema.field(n).type)
            ]
            assert all(pa.types.is_floating(kind.value_type) for kind in lists), path
            content = "\n".join(str(v) for name in strings for v in table[name].to_pylist()).encode()
        assert not [passage for passage in passages if passage in content], path
    # The page's own words aside, no longer word of a text is in what the page says of the records.
    data = json.dumps({k: v for k, v in data_of(page_of(audited)).items() if k != "above"})
    found = {word for word in words if word in data}
    assert not found - {"difference", "attribution"}, found
    assert data_of(page_of(audited))["strips"] is None


def test_reveal_writes_the_tokens_that_make_up_the_text(pair: Pair, tmp_path: Path) -> None:
    texts = demo_texts().texts
    audit(pair, texts[:8], texts[60:80], tmp_path, config=AuditConfig(attacks="loss", reveal=True))
    tokens, records = read_tokens(tmp_path), read_records(tmp_path)
    for row, words in zip(tokens["row"].to_pylist(), tokens["token"].to_pylist(), strict=True):
        assert len(words) == records["n_tokens"][row].as_py()
        assert "".join(words).strip() in records["text"][row].as_py()
    assert data_of(page_of(tmp_path))["strips"]["words"]
    assert "attribution" not in tokens.column_names


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    page = page_of(made_up_audit(tmp_path, 120, names=HOSTILE))
    elements = Page(page).elements
    assert sum(tag == "script" for tag, _ in elements) == 2
    assert sum(tag == "style" for tag, _ in elements) == 1 + 2 * 0 + page.count("<defs>\n  <style")
    assert not [tag for tag, _ in elements if tag == "img"]
    assert not [a for _, a in elements if any(name.startswith("on") for name in a)]
    assert "49" not in page_text_of_verdict(page)
    data = data_of(page)
    assert max(map(len, data["id"])) <= 120
    assert data["id"][1].startswith("</script>")


def page_text_of_verdict(page: str) -> str:
    return re.search(r'<p class="sentence">(.*?)</p>', page, re.DOTALL).group(1)


def test_embedded_json_cannot_end_its_element_and_comes_back_whole() -> None:
    value = [*HOSTILE, "]]>", "<!--", "-->", "\u2028", "\x00\x1f", "&lt;"]
    text = str(embedded_json(value))
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_a_damaged_token_file_is_named_and_a_missing_one_is_no_fault(tmp_path: Path) -> None:
    folder = made_up_audit(tmp_path, 60)
    (folder / "private" / "tokens.parquet").write_bytes(b"PAR1 no such thing")
    with pytest.raises(StoreError, match=r"tokens\.parquet"):
        write_report(folder)
    (folder / "private" / "tokens.parquet").unlink()
    assert data_of(page_of(folder))["strips"] is None


def test_files_that_lack_a_part_give_a_page_or_name_it(tmp_path: Path) -> None:
    folder = made_up_audit(tmp_path, 60)
    tree = json.loads((folder / "results.json").read_text("utf-8"))
    del tree["attacks"]["ltmia"]["tpr_at_fpr"]["0.1"], tree["validity"]["base"], tree["epsilon"], tree["content_sha256"]
    (folder / "results.json").write_text(json.dumps(tree), "utf-8")
    page = page_of(folder)
    assert "not in the results file" in page
    assert "Written before this check existed." in page
    records = pq.read_table(folder / "records.parquet")
    for lost in ("score_ltmia", "q_value", "group"):
        pq.write_table(records.drop_columns(lost), folder / "records.parquet")  # the run id stays
        with pytest.raises(StoreError, match=rf"records\.parquet: .*no column '{lost}'"):
            write_report(folder)


def test_every_check_is_shown(audited: Path) -> None:
    assert set(CHECK_NAMES) == set(PROBLEMS) == set(Validity.model_fields)
    page = html.unescape(page_of(audited))
    assert all(f"<h3>{name}</h3>" in page for name in CHECK_NAMES.values())


def test_slices_agree_with_the_whole(audited: Path) -> None:
    results, records = read_results(audited), Records.of(read_records(audited), "ltmia")
    lengths = length_slices(records)
    assert sum(s.n_members for s in lengths) == N_MEMBERS
    assert sum(s.n_nonmembers for s in lengths) == N_NONMEMBERS
    assert sum(s.n_flagged for s in lengths) == results.decisions.n_flagged
    groups = group_slices(records, results)
    assert all(s.n_members >= 2 or s.flagged_whole for s in groups)
    of_group = np.array([group == groups[0].name for group in records.groups])
    by_hand = records.scores[of_group & (records.labels == 1)]  # the group may have non-members too
    others = records.scores[records.labels == 0]
    assert groups[0].auc.value == pytest.approx((by_hand[:, None] > others).mean())


def test_thinning_keeps_both_ends_and_few_points() -> None:
    x = np.linspace(0, 1, 50_000)
    kept = _thinned(x)
    assert {0, len(x) - 1} <= set(kept)
    assert MOST_POINTS / 2 < len(kept) <= 2 * MOST_POINTS + 2
    assert (np.diff(kept) > 0).all()


@pytest.fixture(scope="module")
def result(audited: Path) -> AuditResult:
    return AuditResult(results=read_results(audited), records=read_records(audited), folder=audited)


def printed(results: Results, console: Console) -> str:
    with console.capture() as captured:
        print_results(results, Path("audit"), console)
    return captured.get()


def test_a_pipe_gets_an_aligned_table_control_first_and_nothing_twice(result: AuditResult) -> None:
    out = printed(result.results, Console(force_terminal=False, width=80))
    lines = [line for line in out.splitlines() if line]
    assert lines[0] == "✕ Do not release: limit exceeded"
    start = next(i for i, line in enumerate(lines) if line.startswith("attack "))
    table = lines[start : start + 1 + len(result.results.attacks)]
    assert [line.split(" ")[0] for line in table[1:]] == attack_order(result.results)
    for title in ("AUC", "TPR at 10 % FPR"):
        at = table[0].index(title)
        assert all(line[at - 1] == " " and line[at] != " " for line in table[1:])
    auc = result.results.attacks["ltmia"].auc
    assert f"{auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]" in next(
        line for line in table if line.startswith("ltmia")
    )
    assert not set(out) & set("│┃─━\x1b")
    assert "Report:  audit/report.html" in lines
    assert len(set(lines)) == len(lines)
    for check in vars(result.results.validity).values():
        assert out.count(check.sentence) == (check.status in ("warning", "failed"))


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("shown", ["terminal_80", "terminal_120", "pipe"])
@pytest.mark.parametrize("case", ["audit", "too_small", "score"])
def test_the_output_is_that_of_the_golden_file(case: str, shown: str, tmp_path: Path) -> None:
    """To renew them: LTMIA_RENEW_GOLDEN=1 pytest tests/report/test_report.py -k golden, and read the difference."""
    results = read_results(made_up_audit(tmp_path, 24 if case == "too_small" else 400, reveal=False))
    if case == "score":
        data = results.data.model_copy(update={"n_members": 0, "n_candidates": 200})
        results = results.model_copy(update={"kind": "score", "attacks": {}, "data": data})
    width = int(shown.removeprefix("terminal_")) if shown != "pipe" else 80
    out = printed(results, Console(force_terminal=shown != "pipe", width=width, color_system=None))
    file = GOLDEN / f"{case}.{shown}.txt"
    if os.environ.get("LTMIA_RENEW_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(out, "utf-8")
    assert out == file.read_text("utf-8")


def test_of_how_many_texts_only_the_beginning_was_read_is_counted_and_said(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [text[:n] for text, n in zip(demo_texts().texts, [60, 60, 2000, 2000, 2000, 0] * 10, strict=False)]
    lengths = [len(pair.tokenizer(text)["input_ids"]) for text in texts]
    limit = sorted(lengths)[-20]
    n_long = sum(length > limit for length in lengths)
    assert 0 < n_long < 40
    config = AuditConfig(attacks="difference", max_length=limit)
    some = audit(pair, texts[:30], texts[30:], tmp_path / "some", config=config)
    assert some.results.data.n_cut == n_long
    said = f"Only the first {limit} tokens of each text were read. {n_long} of 60 texts are longer"
    print_results(some.results, some.folder, Console())
    assert said in capsys.readouterr().out
    assert said in page_of(some.folder)
    print_results(some.results, some.folder, Console(), lambda line: line.replace("`max_length`", "--max-length"))
    assert "A larger --max-length reads more." in capsys.readouterr().out

    config = ScoreConfig(attack="difference", max_length=max(lengths) + 1)
    whole = score(pair, texts[:30], texts[30:], tmp_path / "whole", config=config)
    assert whole.results.data.n_cut == 0
    assert "tokens of each text were read" not in page_of(whole.folder)
    assert "10 of 60 texts could not be scored" in page_of(whole.folder)


@pytest.mark.parametrize("no_color", [True, False])
def test_a_terminal_gets_a_table_within_80_columns(result: AuditResult, no_color: bool) -> None:
    console = Console(force_terminal=True, width=80, record=True, no_color=no_color, color_system="truecolor")
    with console.capture() as captured:
        print_results(result.results, Path("audit"), console)
    text = captured.get()
    assert ("\x1b[33m" in text) <= (not no_color), "NO_COLOR leaves no colour"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert plain.index("\nbag_of_words") < plain.index("\nltmia")
    rows = [line for line in plain.splitlines() if line.strip().startswith(tuple(result.results.attacks))]
    assert len(rows) == len(result.results.attacks), "one line per attack: nothing wraps"
    assert max(map(len, plain.splitlines())) <= 80


def test_control_characters_do_not_reach_the_terminal(result: AuditResult) -> None:
    check = Check(status="warning", sentence="\x1b[2Jgone [bold]\x07")
    hostile = result.results.model_copy(
        update={"validity": result.results.validity.model_copy(update={"blind": check})}
    )
    console = Console(force_terminal=True, width=80)
    with console.capture() as captured:
        print_results(hostile, Path("a\x1b]0;title\x07"), console)
    assert "\x1b[2J" not in captured.get()
    assert "\x07" not in captured.get()
    assert "[bold]" in captured.get()


def on_a_page(said: str, results: Results | None = None) -> str:
    return template_environment().from_string("{{ said | sentence }}").render(said=said, results=results)


def test_options_are_named_as_in_the_command_that_made_the_results(result: AuditResult) -> None:
    said = "audit with `max_length=64`, or set `deduplicate=True`; `reason` says why"
    flags = "audit with <code>--max-length 64</code>, or set <code>--deduplicate</code>; <code>reason</code> says why"
    for command, shown in (("ltmia audit my-model", flags), ("python my_audit.py", None), ("", None)):
        results = result.results.model_copy(update={"command": command})
        assert on_a_page(said, results) == (shown or re.sub("`(.*?)`", r"<code>\1</code>", said))


def test_names_between_backticks_are_set_as_code_and_stay_escaped() -> None:
    assert on_a_page("A larger `max_length` reads more.") == "A larger <code>max_length</code> reads more."
    assert on_a_page("`<b>` [0.1, 0.2] and [0.013 %, 2.7 %]") == (
        "<code>&lt;b&gt;</code> [0.1,\u00a00.2] and [0.013\u00a0%,\u00a02.7\u00a0%]"
    )


def test_no_backtick_is_left_on_the_page(audited: Path) -> None:
    page = re.sub(r"<(script|style).*?</\1>", "", page_of(audited), flags=re.S)
    assert "<code>weights</code> reads them" in page
    assert "`" not in page


def test_a_rate_that_nothing_was_measured_at_has_no_column_but_a_reason(result: AuditResult) -> None:
    lines = printed(result.results, Console(width=200)).splitlines()
    (head,) = (line for line in lines if line.startswith("attack "))
    for name, fpr in (("10 %", "0.1"), ("1 %", "0.01")):
        rate = result.results.attacks[result.results.decisions.attack].tpr(fpr)
        assert (f"TPR at {name} FPR" in head) == (rate.value is not None)
        assert (f"TPR at {name} FPR: {rate.reason}." in lines) == (rate.value is None)


def test_a_curve_starts_at_the_left_edge_with_what_is_found_before_a_false_positive() -> None:
    axes = Figure().subplots()
    tied = np.array([0.0, 0.0, -1.0, -2.0])
    plot_roc(axes, {"a": (np.array([1.0, 2.0, -0.5, -3.0]), tied)}, control="b")
    x, y = axes.lines[0].get_xydata().T
    assert x[0] == OFF_AXIS
    assert y[0] == 0.5
    assert x[1] == 0.5


def test_a_notebook_shows_a_compact_table_and_axes(result: AuditResult) -> None:
    html = result._repr_html_()
    assert len(html) < 8_000
    assert html.index(">bag_of_words") < html.index(">ltmia")
    assert "Do not release: limit exceeded" in html
    assert f"of {N_MEMBERS} training records can be identified" in html
    axes = result.plot_roc()
    assert isinstance(axes, Axes)
    assert axes.get_xscale() == "log"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == "ltmia"
    assert labels[-2:] == ["bag_of_words", "chance"]
    assert result.plot_roc(axes) is axes


def test_a_notebook_escapes_what_it_shows(result: AuditResult) -> None:
    hostile = AuditResult(results=result.results, records=result.records, folder=Path("<script>alert(1)"))
    assert "<script>" not in hostile._repr_html_()


def test_candidates_get_a_report_and_no_roc(pair: Pair, tmp_path: Path) -> None:
    texts = demo_texts().texts
    found = score(pair, texts[:20], texts[60:100], tmp_path, config=ScoreConfig(attack="difference"))
    page = page_of(tmp_path)
    assert "20 candidates can be identified" in page or "No statement on single candidates" in page
    assert "How well each attack" in page
    assert 'aria-label="ROC' not in page
    assert data_of(page)["kind"] == "C" * 20 + "N" * 40
    assert "20 candidates can be identified" in found._repr_html_()
    with pytest.raises(DataError, match="no ROC"):
        found.plot_roc()
