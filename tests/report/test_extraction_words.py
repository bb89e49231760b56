"""The line and the table on what can be drawn out say what the results hold, and why nothing was measured."""

import pytest

from ltmia.evaluation.drawn_out import DrawnOut, DrawnOutOfBoth, Extractable, Extraction, Nearness, NearVerbatim
from ltmia.evaluation.files import read_audit
from ltmia.evaluation.results import Results
from ltmia.evaluation.section import Measure
from ltmia.report.extraction_words import continued_line, continued_rows, extraction_line, extraction_rows
from ltmia.report.page import render_report
from report_samples import made_up_audit


def share(value: float) -> Measure:
    return Measure(value=value, low=value / 2, high=min(2 * value, 1))


def drawn(judged: float, nonmembers: float, n_new: int) -> Extractable:
    nothing = share(0.0)
    return Extractable(
        judged=share(judged), nonmembers=share(nonmembers), judged_by_base=nothing, nonmembers_by_base=nothing,
        difference=share(judged - nonmembers), n_new=n_new,
    )  # fmt: skip


FOUND = Extraction(
    n_judged=200, n_nonmembers=400, n_without_suffix=7, suffix_tokens=50,
    within={"1": drawn(0.0, 0.0, 0), "1000": drawn(0.125, 0.25, 24)}, greedy=drawn(0.375, 0.0, 75),
    top_k=20, among_top={"1000": DrawnOut(judged=share(0.1875), nonmembers=share(0.0))},
    at_most={
        "1000": DrawnOutOfBoth(
            judged=share(0.5), nonmembers=share(0.25), judged_by_base=share(0.0625), nonmembers_by_base=share(0.0)
        )
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory):
    return read_audit(made_up_audit(tmp_path_factory.mktemp("audit"), 24, reveal=False))


def with_extraction(results: Results, found: Extraction | None, **changes: object) -> Results:
    return results.model_copy(update={"extraction": found, **changes})


def test_line_and_table_show_the_shares(audited) -> None:
    results, records = audited
    some = with_extraction(results, FOUND)
    assert extraction_line(some) == (
        "Drawn out of the model within 1,000 draws, given the beginning: 12 % of 200 members, 25 % of 400 non-members. "
        "Members that come out of the model and not of the base: 24. "
        "At any temperature, top-k and top-p, at most 50 % of the members come out."
    )
    assert [row.name for row in extraction_rows(some)] == [
        "1 draw",
        "1,000 draws",
        "the most likely token each time",
        "1,000 draws, top-20",
        "1,000 draws, any setting, at most",
    ]
    older = with_extraction(results, FOUND.model_copy(update={"among_top": {}, "at_most": {}}))
    assert len(extraction_rows(older)) == 3
    assert "top-p" not in extraction_line(older)
    page = render_report(some, records)
    for said in (
        "0.125</span> <small>[0.062, 0.250]</small>",
        "of members; 25 % of non-members",
        "Nothing is said of 7 members",
        "0.188</span> <small>[0.094, 0.375]</small>",
        "0.062</span> <small>[0.031, 0.125]</small>",
    ):
        assert said in page, said
    scored = extraction_line(with_extraction(results, FOUND, kind="score"))
    assert "members" not in scored.replace("non-members", "").lower()


def test_why_nothing_was_measured_is_said_and_an_old_file_says_nothing(audited) -> None:
    results, records = audited
    unmeasured = with_extraction(results, Extraction(reason="the cluster kept scores only"))
    assert extraction_line(unmeasured).endswith("out of the model: the cluster kept scores only.")
    assert "Not measured: the cluster kept scores only." in render_report(unmeasured, records)
    silent = with_extraction(results, Extraction(n_judged=3))
    assert "does not say why" in extraction_line(silent)
    assert "Not measured: the results file does not say why." in render_report(silent, records)
    old = with_extraction(results, None)
    assert extraction_line(old) is None
    assert "an older version" in render_report(old, records)


def near(run: int, distance: float) -> Nearness:
    return Nearness(
        median_run=run / 2, longest_run=run, median_run_characters=2 * run, longest_run_characters=4 * run,
        median_distance=1, smallest_distance=distance,
    )  # fmt: skip


def test_how_near_continuations_come_is_shown_beside_base_and_non_members(audited) -> None:
    results, records = audited
    found = NearVerbatim(
        n_judged=10, n_nonmembers=9, n_flagged_left=3, n_continuations=5, longest_suffix=50, longest_new_run=31,
        judged=near(31, 0.125), judged_by_base=near(4, 0.75),
        nonmembers=near(6, 0.5), nonmembers_by_base=near(2, 0.875),
    )  # fmt: skip
    some = results.model_copy(update={"near_verbatim": found})
    assert continued_line(some) == (
        "Continuing the beginnings of the 10 members with the highest scores, the model writes at most 31 tokens in a "
        "row as they stand in the text (the base at most 4, at most 6 in 9 non-members)."
    )
    page = render_report(some, records)
    for said in (
        "9 non-members, by the base</th>",
        "<td>31</td>",
        "<td>124</td>",
        "<td>0.12</td>",
        "3 flagged members",
    ):
        assert said in page, said
    alone = found.model_copy(update={"nonmembers": None, "nonmembers_by_base": None})
    alone = results.model_copy(update={"near_verbatim": alone})
    assert continued_line(alone).endswith("(the base at most 4).")
    assert len(continued_rows(alone)) == 2
    nothing = results.model_copy(update={"near_verbatim": NearVerbatim(reason="too short")})
    assert continued_line(nothing) == "No text was continued: too short."
    assert "No text was continued: too short." in render_report(nothing, records)
    assert continued_line(results) is None
    assert "Nearly word for word" not in render_report(results, records)
