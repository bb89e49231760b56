"""Files of spans: what they name is found, and what is wrong in them is named by its line."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltmia.auditing.spans import wanted_spans
from ltmia.auditing.text_sets import join_sets
from ltmia.data.spans import Span, distinct, read_spans
from ltmia.errors import DataError
from ltmia.records import Texts

TEXTS = Texts(texts=("call 555-0199 or 555-0100", "nothing", "é 12 ü 12"), ids=("a", "b", "7"))


def read(folder: Path, content: str):
    (folder / "spans").write_text(content, "utf-8")
    return read_spans(folder / "spans")


def found(folder: Path, content: str) -> list[tuple[str, str | None]]:
    return [(TEXTS.texts[s.row][s.start : s.end], s.kind) for s in distinct(read(folder, content).find(TEXTS))]


def test_expressions_find_all_they_match_or_their_first_group(tmp_path: Path) -> None:
    said = "phone: \\d{3}-\\d{4}\n\nnumber: [éü] (\\d+)|nothing\nempty: x*\n"
    assert found(tmp_path, said) == [("555-0199", "phone"), ("555-0100", "phone"), ("12", "number"), ("12", "number")]


def test_an_expression_that_finds_nothing_in_the_texts_to_judge_is_named(tmp_path: Path) -> None:
    def unmatched(content: str, judged: list[int]) -> Sequence[str]:
        (tmp_path / "spans").write_text(content, "utf-8")
        others = [row for row in range(len(TEXTS)) if row not in judged]
        given = TEXTS.take(judged), TEXTS.take(others)
        return wanted_spans(str(tmp_path / "spans"), given, join_sets(*given, "members")).unmatched

    said = "phone: \\d{3}-\\d{4}\nagain: 555-0199\nword: nothing\nempty: x*\nno-part: call(never)?\nlate: ü 12$\n"
    said += "typo: \\d{3} -\\d{4}\n"
    assert unmatched(said, [0, 1, 2]) == ["empty", "no-part", "typo"]
    assert unmatched(said, [1]) == ["phone", "again", "empty", "no-part", "late", "typo"]
    assert unmatched('{"id": "a", "start": 1, "end": 2}', [0, 1, 2]) == []


def test_places_are_characters_of_the_text_with_the_id_and_stand_in_order_once(tmp_path: Path) -> None:
    said = (
        '{"id": 7, "start": 7, "end": 9, "kind": "number", "score": 0.5}\n'
        '{"id": "a", "start": 5, "end": 13}\n{"id": "a", "start": 5, "end": 13, "kind": "again"}\n'
    )
    spans = read(tmp_path, said)
    spans.check_ids([TEXTS.take([0]), TEXTS.take([1, 2])])
    assert distinct(spans.find(TEXTS)) == [
        Span(row=0, start=5, end=13, kind=None),
        Span(row=2, start=7, end=9, kind="number"),
    ]
    assert spans.find(TEXTS.take([1])) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("phone: (", "line 1: not a regular expression"),
        ("a: b\nno colon", "line 2: expected a name"),
        ("a:", "line 1: expected a name"),
        ('{"id": "a", "start": 1, "end": 2}\n{"id": "a", "start": 1}', "line 2: end: "),
        ('{"id": "a", "start": true, "end": 2}', "line 1: start: "),
        ('{"id": "a", "start": -1, "end": 2}', "line 1: start: "),
        ('{"id": "a", "start": 1, "end": 2', "line 1: "),
        ('\n{"id": "a", "start": 1, "end": 26}', "line 2: start 1, end 26 in a text of 25 characters"),
        ('{"id": "a", "start": 2, "end": 2}', "line 1: start 2, end 2"),
        ('{"id": "a", "start": 1, "start": 2, "end": 4}', "line 1: the key 'start' occurs twice"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(DataError, match="spans") as raised:
        read(tmp_path, content).find(TEXTS)
    assert said in str(raised.value)


def test_an_id_that_no_text_or_several_texts_have_is_refused(tmp_path: Path) -> None:
    for name, sets, said in (("c", [TEXTS], "no text has"), ("a", [TEXTS, TEXTS.take([0])], "several texts have")):
        spans = read(tmp_path, f'{{"id": "b", "start": 0, "end": 1}}\n{{"id": "{name}", "start": 0, "end": 1}}')
        with pytest.raises(DataError, match=f"line 2: {said} this id"):
            spans.check_ids(sets)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(lambda text: f"{{{text}".encode())))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "spans").write_bytes(content)
    try:
        spans = read_spans(tmp_path / "spans")
    except DataError:
        return
    assert spans.rules or spans.places
