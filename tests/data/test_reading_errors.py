"""Reading: each thing that can be wrong gives one message that says where and what to do."""

import gzip
import json
import os
import sys
import zlib

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltmia.data import json_array, lines, reading
from ltmia.data.reading import read_texts
from ltmia.errors import ConfigError, DataError


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


GOOD = b'{"id": "a", "text": "fine"}\n'

WRONG_JSON = {
    "broken": (b'{"text": "a"', r"line 2, column 13: not JSON"),
    "list": (b'["a"]', r"line 2: a JSON list, not an object"),
    "bare": (b'"a"', r"line 2: a JSON str, not an object"),
    "deep": (b'{"text": ' + b"[" * 200_000, r"line 2: JSON nested too deeply"),
    "digits": (b'{"text": ' + b"1" * 10_000 + b"}", r"line 2: JSON value out of range"),
    "number": (b'{"text": 3.5}', r"line 2: column 'text' holds a float.*`text_column`"),
    "texts": (b'{"text": ["a"]}', r"line 2: column 'text' holds a list"),
    "lacks": (b'{"prompt": "a", "answer": "b"}', r"line 2.*'prompt', 'answer'.*`text_column`"),
    "no columns": (b"{}", r"line 2: no column 'text'. Columns found: none"),
    "bytes": (b'{"text": "caf\xe9"}', r"line 2, byte 14: not UTF-8 \(0xe9\)"),
    "raw surrogate": (b'{"text": "\xed\xa0\x80"}', r"line 2, byte 11: not UTF-8"),
    "same id": (GOOD, r"line 2: the id 'a' was already used at .*r.jsonl, line 1"),
    "key twice": (b'{"text": "x", "id": "b", "te\\u0078t": "y"}', r"line 2: the key 'text' occurs twice in one object"),
    "key twice inside": (
        b'{"text": [{"role": "user", "content": "", "role": "a"}]}',
        r"line 2: the key 'role' occurs twice",
    ),
    "key twice in tools": (
        b'{"messages": [{"role": "user", "content": "x"}], "tools": "[{\\"a\\": 1, \\"a\\": 2}]"}',
        r"line 2: column 'tools': the key 'a' occurs twice",
    ),
    "id list": (b'{"id": [1], "text": "x"}', r"line 2: column 'id' holds a list"),
    "id bool": (b'{"id": true, "text": "x"}', r"line 2: column 'id' holds a bool"),
    "half id": (b'{"id": "\\ud800", "text": "x"}', r"line 2: column 'id'.*half a surrogate"),
}


@pytest.mark.parametrize("case", WRONG_JSON)
def test_wrong_json_lines_name_the_line(tmp_path, case):
    content, message = WRONG_JSON[case]
    path = tmp_path / "r.jsonl"
    path.write_bytes(GOOD + content)
    with pytest.raises(DataError, match=message):
        read_texts(path, chat=lambda *_: "unread")
    assert read_texts(path, limit=1).texts == ("fine",)


WRONG_CSV = {
    "missing column": (b"note;id\nx;1\n", r"line 2: no column 'text'. Columns found: 'note;id'"),
    "too many": (b"id,text\n1,a\n\n2,b,c\n", r"line 4: 3 fields, but the header has 2"),
    "too few": (b"id,text\n1\n", r"line 2: 1 fields"),
    "twice": (b"text,text\na,b\n", r"column 'text' occurs twice"),
    "open quote": (b'text\n"never closed\nmore\n', r"line 2: not comma-separated"),
    "stray quote": (b'text\n"a"b\n', r"line 2: not comma-separated"),
    "old breaks": (b"text\ra\rb\r", r"line 1: not comma-separated"),
    "header only": (b"id,text\n", r"holds no texts"),
    "empty": (b"", r"holds no texts"),
    "utf-16": ("text\na\n".encode("utf-16"), r"line 1, byte 1: not UTF-8 but UTF-16.*iconv"),
    "utf-16 without a mark": ("text\na\n".encode("utf-16-le"), r"line 1, byte 1: not UTF-8 but UTF-16"),
    "utf-16, big end first": ("text\na\n".encode("utf-16-be"), r"line 1, byte 1: not UTF-8 but UTF-16"),
    "no id": (b"id,text\n,a\n", None),
}


@pytest.mark.parametrize("case", WRONG_CSV)
def test_wrong_csv_names_the_line(tmp_path, case):
    content, message = WRONG_CSV[case]
    path = tmp_path / "r.csv"
    path.write_bytes(content)
    if message is None:
        assert read_texts(path).texts == ("a",)
        return
    with pytest.raises(DataError, match=message):
        read_texts(path)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_a_file_without_a_header_does_not_show_its_first_text(tmp_path, name):
    separator = "," if name == "x.csv" else "\t"
    lines = [separator.join(("1", "John Doe tested positive.")), separator.join(("2", "Jane Roe did not."))]
    (tmp_path / name).write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"Columns found: '1' and 1 whose names look like texts") as error:
        read_texts(tmp_path / name)
    assert "John" not in str(error.value)


def test_the_line_of_a_row_with_line_breaks_is_its_first(tmp_path):
    path = tmp_path / "r.csv"
    path.write_bytes(b'id,text\n1,"a\nb"\n1,c\n')
    with pytest.raises(DataError, match=r"line 4: the id '1' was already used at .*line 2\."):
        read_texts(path)


@pytest.mark.parametrize("name", ["r.jsonl", "r.txt", "r.csv", "r.jsonl.gz", "r.parquet"])
def test_empty_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no texts|not an intact Parquet"):
        read_texts(tmp_path / name)
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(DataError, match=r"holds no texts"):
        read_texts(tmp_path / "bom.txt")


@pytest.mark.parametrize("source", ["nowhere.jsonl", "nul\0.txt", "n" * 5000, ""])
def test_missing_files_and_impossible_names(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no such file|no \.txt file"):
        read_texts(source)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("r.pdf", "unknown kind of file. Expected .jsonl"),
        ("r.xlsx", "unknown kind of file"),
        ("r.jsonl.bz2", "unknown kind of file"),
        (".jsonl", "unknown kind of file"),
        ("r", "unknown kind of file"),
    ],
)
def test_unknown_endings(tmp_path, name, message):
    (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path / name)


WRONG_ARRAYS = {
    "cut": (b'[{"text": "a"}, {"text": "b"', r"r.json, item 2: not JSON"),
    "open": (b'[{"text": "a"}', r"r.json, item 2: not JSON"),
    "broken": (b'[{"text": "a"}, {"text" "b"}]' + b" " * 100, r"r.json, item 2: not JSON \(Expecting ':'"),
    "list": (b'[["a"]]', r"r.json, item 1: not an object"),
    "key twice": (b'[{"text": "a"}, {"text": "b", "text": "c"}]', r"r.json, item 2: the key 'text' occurs twice"),
    "text": (b'["a"]', r"r.json, item 1: not an object"),
    "more": (b'[{"text": "a"}] {"text": "b"}', r"r.json, item 2: more text after the end"),
    "empty": (b"[]", r"holds no texts"),
    "deep": (b'[{"text": ' + b"[" * 200_000, r"r.json, item 1: (JSON nested too deeply|not JSON)"),
    "bytes": (b'[{"text": "caf\xe9"}]', r"r.json: not UTF-8 \(0xe9\)"),
    "utf-16": ('[{"text": "a"}]'.encode("utf-16-le"), r"not UTF-8 but UTF-16"),
    "other": (b'{"data": [{"text": "a"}]}', r"r.json, line 1: no column 'text'. Columns found: 'data'"),
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_wrong_json_arrays_name_the_item(tmp_path, case):
    content, message = WRONG_ARRAYS[case]
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path / "r.json")


def test_a_wrong_tsv_speaks_of_tabs(tmp_path):
    (tmp_path / "r.tsv").write_bytes(b"id\ttext\n1\ta\tb\n")
    with pytest.raises(DataError, match=r"line 2: 3 fields.*hold tabs"):
        read_texts(tmp_path / "r.tsv")


def test_wrong_folders(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"no .txt file in this folder"):
        read_texts(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"not an intact dataset folder"):
        read_texts(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"no .txt file in this folder"):
        read_texts(tmp_path / "folder.jsonl")


def test_damaged_dataset_folder(tmp_path):
    folder = tmp_path / "saved"
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(folder))
    for arrow in folder.glob("*.arrow"):
        arrow.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"not an intact dataset folder"):
        read_texts(folder)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in (tmp_path, "hf:imdb[test]"):
        with pytest.raises(DataError, match=r"pip install 'ltmia\[hub\]'"):
            read_texts(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    path = tmp_path / "r.txt"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(DataError, match=r"cannot be read"):
        read_texts(path)


@pytest.mark.parametrize(
    "content",
    [b"plain", gzip.compress(b"\n" * 99 + GOOD)[:-20], gzip.compress(GOOD)[:12] + b"\xff" * 30],
    ids=["not gzip", "cut", "damaged"],
)
def test_damaged_gzip(tmp_path, content):
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not an intact gzip file"):
        read_texts(path)


@pytest.mark.parametrize("content", [b"plain", zstd(GOOD)[:-5], zstd(GOOD) + b"more"], ids=["not", "cut", "more"])
def test_damaged_zstd(tmp_path, content):
    path = tmp_path / "r.jsonl.zst"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"r.jsonl.zst: not an intact zstd file"):
        read_texts(path)


def test_zstd_and_array_bombs_are_refused(tmp_path, monkeypatch):
    (tmp_path / "line.jsonl.zst").write_bytes(zstd(bytes(2**25)))
    with pytest.raises(DataError, match=r"line 1.*(longer than 16 MiB|UTF-16)"):
        read_texts(tmp_path / "line.jsonl.zst")
    (tmp_path / "one.json.gz").write_bytes(gzip.compress(b'[{"text": "' + b"x" * 2**25, 1))
    with pytest.raises(DataError, match=r"item 1: longer than 16 MiB"):
        read_texts(tmp_path / "one.json.gz")
    monkeypatch.setattr(lines, "MAX_TOTAL_BYTES", 10**6)
    monkeypatch.setattr(json_array, "MAX_TOTAL_BYTES", 10**6)
    (tmp_path / "many.csv.zst").write_bytes(zstd(b"text\n" * 10**6))
    (tmp_path / "many.json").write_bytes(b"[" + b'{"text": "a"},' * 10**5)
    for name in ("many.csv.zst", "many.json"):
        with pytest.raises(DataError, match=rf"{name}.*more than"):
            read_texts(tmp_path / name)


def test_wrong_labels(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "a", "who": "x"}\n{"text": "b", "who": null}\n')
    with pytest.raises(DataError, match=r"line 2: column 'who' holds a NoneType.*`group_column`"):
        read_texts(path, group_column="who")
    with pytest.raises(DataError, match=r"line 1: no column 'key'.*'text', 'who'.*`id_column`"):
        read_texts(path, id_column="key")
    with pytest.raises(DataError, match=r"no column 'ward'.*`group_column`"):
        read_texts(path, group_column="ward")
    (tmp_path / "r.txt").write_text("x")
    with pytest.raises(DataError, match=r"no column 'body'.*Columns found: 'text'"):
        read_texts(tmp_path / "r.txt", text_column="body")


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_under_one(tmp_path, limit):
    with pytest.raises(ConfigError, match="limit"):
        read_texts(tmp_path, limit=limit)


def test_wrong_parquet(tmp_path):
    path = tmp_path / "r.parquet"
    path.write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(DataError, match=r"not an intact Parquet file"):
        read_texts(path)
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), path)
    with pytest.raises(DataError, match=r"row 1: no column 'key'. Columns found: 'text', 'n'"):
        read_texts(path, id_column="key")
    with pytest.raises(DataError, match=r"row 1: column 'n' holds a int"):
        read_texts(path, text_column="n")
    pq.write_table(pa.table({"text": pa.array([b"a"])}), path)
    with pytest.raises(DataError, match=r"row 1: column 'text' holds a bytes"):
        read_texts(path)
    for nested in ([["a"]], [{"text": "a"}]):
        pq.write_table(pa.table({"text": nested}), path)
        with pytest.raises(DataError, match=r"row 1: column 'text' holds a (list|dict)"):
            read_texts(path)
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    with pytest.raises(DataError, match=r"two columns are named 'text'"):
        read_texts(path)
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xe9\xe9")])
    pq.write_table(pa.table({"text": broken}), path)
    with pytest.raises(DataError, match=r"row 1: a text that is not UTF-8"):
        read_texts(path)


def test_a_tiny_parquet_of_one_huge_repeated_text_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "r.parquet"
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), ["x" * 10**6])
    pq.write_table(pa.table({"text": repeated}), path, compression="zstd")
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(reading, "MAX_TOTAL_BYTES", 50 * 10**6)
    with pytest.raises(DataError, match=r"row 51: more than .* MiB of text"):
        read_texts(path)


def test_one_endless_line_is_refused_without_reading_it_whole(tmp_path):
    path = tmp_path / "r.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(20):
            file.write(b"x" * 2**20)
    with pytest.raises(DataError, match=r"line 1: longer than 16 MiB"):
        read_texts(path)
    path.unlink()
    (tmp_path / "big.txt").write_bytes(b"x" * (lines.MAX_TEXT_BYTES + 1))
    with pytest.raises(DataError, match=r"big.txt: longer than 16 MiB"):
        read_texts(tmp_path)


def test_decompression_bomb_of_short_lines_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    path.write_bytes(packer.compress(b"\n" * 10**7) + packer.flush())
    monkeypatch.setattr(lines, "MAX_TOTAL_BYTES", 10**6)
    with pytest.raises(DataError, match=r"line 1000001: more than"):
        read_texts(path)


def test_too_many_or_too_long_texts_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "r.txt"
    path.write_text("abcdef\n" * 11)
    monkeypatch.setattr(reading, "MAX_TEXTS", 10)
    with pytest.raises(DataError, match=r"line 11: more than 10 texts"):
        read_texts(path)
    assert len(read_texts(path, limit=10)) == 10
    monkeypatch.setattr(reading, "MAX_TEXT_BYTES", 5)
    with pytest.raises(DataError, match=r"line 1: a text of 6 characters"):
        read_texts(path)


def outcome(path):
    """Return the ids read, or None and the message."""
    try:
        return read_texts(path).ids, ""
    except DataError as error:
        return None, str(error)


@given(
    content=st.binary(max_size=200) | st.text(max_size=80).map(str.encode),
    ending=st.sampled_from([".jsonl", ".jsonl.gz", ".csv", ".tsv.zst", ".json", ".txt", ".parquet"]),
)
@settings(deadline=None, max_examples=150)
def test_any_bytes_are_read_or_refused_cleanly(content, ending, tmp_path_factory):
    path = tmp_path_factory.mktemp("h") / f"r{ending}"
    path.write_bytes(content)
    ids, message = outcome(path)
    assert str(path) in message if ids is None else len(set(ids)) == len(ids) > 0


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@given(rows=st.lists(st.fixed_dictionaries({"text": JSON, "id": JSON}) | JSON, max_size=4))
@settings(deadline=None, max_examples=150)
def test_any_json_is_read_or_refused_cleanly(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("h") / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids, message = outcome(path)
    assert str(path) in message if ids is None else len(ids) == len(rows)
