"""The line and the tables on secrets say what the results hold, and hostile names stay text."""

import pyarrow as pa
import pytest

from ltmia.evaluation.drawn_out import Secrets, SecretValues
from ltmia.evaluation.files import read_audit
from ltmia.evaluation.section import Measure
from ltmia.report.page import render_report
from ltmia.report.secret_words import MOST_SHOWN, most_exposed, secrets_line
from report_samples import HOSTILE, made_up_audit


def side(n_values: int, n_ranked: int, bits: tuple[float, float, float] | None) -> SecretValues:
    found = Measure(reason="no span was found") if bits is None else Measure(value=bits[0], low=bits[1], high=bits[2])
    return SecretValues(
        n_values=n_values, n_ranked=n_ranked, largest=found, largest_by_base=found, median=1.25 if n_ranked else None
    )


FOUND = Secrets(judged=side(60, 50, (11, 8, 20)), nonmembers=side(40, 40, (6, 4, 7)), n_alternatives=2000, reach=11)


def rows_of(*rows: dict) -> pa.Table:
    usual = {"id": "a", "span": 1, "label": 1, "kind": "code", "n_copies": 1, "exposure": 3, "exposure_by_base": 1}
    return pa.Table.from_pylist([{**usual, "reason": None, **row} for row in rows])


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory):
    return read_audit(made_up_audit(tmp_path_factory.mktemp("audit"), 24, reveal=False))


def test_the_line_gives_the_largest_exposure_beside_base_control_and_chance(audited) -> None:
    results, _ = audited
    assert secrets_line(results) is None
    assert secrets_line(results.model_copy(update={"secrets": FOUND})) == (
        "Secrets: 50 of 60 in the members were ranked; their largest exposure is 11 [8, 20] bits (11 [8, 20] by the "
        "base, 6 [4, 7] in 40 secrets of non-members). By chance it would be about 6."
    )
    nothing = FOUND.model_copy(update={"judged": side(0, 0, None)})
    assert secrets_line(results.model_copy(update={"secrets": nothing, "kind": "score"})) == (
        "No secret in the candidates was ranked: no span was found."
    )


def test_the_most_exposed_secrets_of_the_texts_to_judge_come_first() -> None:
    table = rows_of(
        {"id": "low"}, {"id": "other", "label": 0, "exposure": 11}, {"id": "none", "exposure": None},
        {"id": "known", "exposure": 9, "exposure_by_base": 9}, {"id": "learnt", "exposure": 9},
        {"id": "candidate", "exposure": 2, "label": None},
    )  # fmt: skip
    assert [row["id"] for row in most_exposed(table)] == ["learnt", "known", "low", "candidate"]
    assert len(most_exposed(rows_of(*[{}] * 50))) == MOST_SHOWN
    assert most_exposed(None) == []


def test_the_page_shows_both_tables_and_hostile_names_stay_text(audited) -> None:
    results, records = audited
    spans = rows_of(*({"id": name, "kind": name[:40]} for name in HOSTILE))
    page = render_report(results.model_copy(update={"secrets": FOUND}), records, spans=spans)
    assert "50 of 60" in page
    assert "11 [8, 20]" in page
    assert '<th scope="row">non-members</th><td>40 of 40</td>' in page
    assert "<img src=x" not in page
    assert "w" * 500 not in page
    assert 'id="secrets"' not in render_report(results, records)
    revealed = rows_of({"value": "482913"})
    assert "<td>482913</td>" in render_report(results.model_copy(update={"secrets": FOUND}), records, spans=revealed)
