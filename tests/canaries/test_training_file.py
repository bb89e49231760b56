"""Rows put into training files of each kind: nothing of the user's is lost, moved or changed."""

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltmia.canaries.rows import columns_of, form_of, new_ids
from ltmia.canaries.training_file import first_rows, read_training_file
from ltmia.data.reading import read_texts
from ltmia.errors import DataError

MARK = "\ufeff"
LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff")), min_size=1)
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8)


def canary(number: int) -> str:
    return f'canary {number}, it said "so; \tyes"'


def insert(path: Path, places: list[int], columns: tuple[str, ...] = ("text",)) -> Path:
    out = path.with_name("with-" + path.name)
    rows = [dict.fromkeys(columns) | {"text": canary(number)} for number in range(len(places))]
    read_training_file(path).written(rows, places, out)
    return out


@st.composite
def written(draw: st.DrawFn) -> tuple[str, str, list[int]]:
    """A kind of file, its content, and where rows are put."""
    kind = draw(st.sampled_from([".jsonl", ".csv", ".tsv", ".txt"]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    if kind == ".txt":
        lines = draw(LINES)
    elif kind == ".jsonl":
        ascii_only = draw(st.booleans())
        lines = [json.dumps({"text": text, "n": 1.50}, ensure_ascii=ascii_only) for text in draw(TEXTS)]
        lines = [line for text in lines for line in (text, *draw(st.sampled_from([(), ("",), ("  ",)])))]
    else:
        rows = [["text", "note"], *([text, "x"] for text in draw(TEXTS))]
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=",\t"[kind == ".tsv"], lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
        lines = [buffer.getvalue().removesuffix(end)]
    content = draw(st.sampled_from(["", MARK])) + end.join(lines) + draw(st.sampled_from(["", end]))
    n_places = draw(st.integers(0, 4))
    return kind, content, [draw(st.integers(0, 10**6)) for _ in range(n_places)]


@given(written(), st.booleans())
def test_all_rows_stay_and_the_new_ones_lie_where_they_were_put(tmp_path_factory, found, packed: bool) -> None:
    kind, content, drawn = found
    path = tmp_path_factory.mktemp("files") / f"train{kind}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    n_rows = len(read_training_file(path))
    places = sorted({place % (n_rows + len(drawn)) for place in drawn})
    places = [place for place in places if place < n_rows + len(places)]
    out = insert(path, places, ("text", "note") if kind in (".csv", ".tsv") else ("text",))
    before, after = (read_texts(place).texts for place in (path, out))
    new = [canary(number) for number in range(len(places))]
    assert [text for text in after if text in new] == new
    assert tuple(text for text in after if text not in new) == before
    if kind in (".txt", ".csv", ".tsv"):  # blank lines of JSON lines are rows, too
        assert [after.index(text) for text in new] == places
    raw = gzip.decompress(out.read_bytes()) if packed else out.read_bytes()
    kept = raw.decode()
    for row in insert_only(kind, new, content):
        kept = kept.replace(row, "", 1)
    assert kept.rstrip("\r\n") == content.rstrip("\r\n")
    assert kept.startswith(MARK) == content.startswith(MARK)


def insert_only(kind: str, new: list[str], content: str) -> list[str]:
    """The new rows as they are written, with the line break of the file."""
    end = "\r\n" if "\r\n" in content and content.index("\r\n") == content.index("\n") - 1 else "\n"
    if kind == ".txt":
        return [text + end for text in new]
    if kind == ".jsonl":
        return [json.dumps({"text": text}) + end for text in new]
    separator = ",\t"[kind == ".tsv"]
    quoted = ['"' + text.replace('"', '""') + '"' for text in new]
    return [text + separator + end for text in quoted]


def test_parquet_keeps_types_order_and_metadata(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.large_string()), ("n", pa.int32()), ("tags", pa.list_(pa.string()))], {b"k": b"v"})
    rows = [{"text": f"row {i}", "n": i, "tags": ["a", None]} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "train.parquet")
    out = pq.read_table(insert(tmp_path / "train.parquet", [0, 3, 6], ("text", "n", "tags")))
    assert out.schema.equals(pq.read_schema(tmp_path / "train.parquet"), check_metadata=True)
    assert out["text"].to_pylist() == [canary(0), "row 0", "row 1", canary(1), "row 2", "row 3", canary(2), "row 4"]
    assert out.filter(pa.array([name.startswith("row") for name in out["text"].to_pylist()])).to_pylist() == rows
    assert out["n"].to_pylist()[0] is None


def test_files_that_can_hold_no_rows_are_refused(tmp_path: Path) -> None:
    strict = pa.schema([pa.field("text", pa.string()), pa.field("n", pa.int32(), nullable=False)])
    pq.write_table(pa.Table.from_pylist([{"text": "a", "n": 1}], schema=strict), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="of which only the text is known"):
        insert(tmp_path / "a.parquet", [0], ("text", "n"))
    (tmp_path / "a.json").write_text('[{"text": "a"}]')
    with pytest.raises(DataError, match="a JSON array"):
        read_training_file(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"text": "a"}\n')
    assert len(read_training_file(tmp_path / "b.json")) == 1
    for place in (tmp_path, tmp_path / "a.docx", tmp_path / "none.jsonl"):
        with pytest.raises(DataError, match="rows cannot be put in here"):
            read_training_file(place)
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not an intact Parquet file"):
        read_training_file(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"text": "a", "messages": None}, "text"),
        ({"prompt": "a", "completion": "b"}, "completion"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages"),
    ],
)
def test_a_canary_takes_the_form_of_the_rows_and_all_of_it_is_read(row: dict, form: str, tmp_path: Path) -> None:
    assert form_of([dict.fromkeys(row), row], "text", "train") == (form, row)
    for text in ("one two three four five six", "字" * 20):
        (tmp_path / "one.jsonl").write_text(json.dumps(columns_of(form, "text", text)))
        read = read_texts(tmp_path / "one.jsonl", chat=lambda said, _ask, _tools: "".join(m["content"] for m in said))
        assert read.texts[0].replace(" ", "") == text.replace(" ", "")
        assert (read.starts is None) == (form != "completion")


@pytest.mark.parametrize(
    "row",
    [{"chosen": "a", "rejected": "b"}, {"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, {"other": 1}],
)
def test_rows_of_other_forms_are_refused(row: dict) -> None:
    with pytest.raises(DataError, match="canaries cannot be written in the form of its rows"):
        form_of([row], "text", "train")


def test_ids_are_new_and_of_the_same_kind(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    assert new_ids(7, ("3", "12", "7"), 2, rng) == [13, 14]
    assert new_ids("7", ("3", "12"), 2, rng) == ["13", "14"]
    names = new_ids("a-7", ("a-7",), 50, rng)
    assert len(set(names)) == 50
    assert all(len(name) == 16 for name in names)
    (tmp_path / "train.jsonl").write_text('{"id": 1}\n{"id": 2, "text": "a"}\n')
    assert [row["id"] for row in first_rows(read_training_file(tmp_path / "train.jsonl"))] == [1, 2]
