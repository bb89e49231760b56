"""Reading: every format gives the same texts, whatever stands in them."""

import csv
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltmia.data import json_array
from ltmia.data.reading import content_ids, read_texts
from ltmia.data.tables import HubName
from ltmia.errors import DataError

ROWS = [
    {"id": "a", "text": "First text.", "author": "x"},
    {"id": "b", "text": 'Comma, "quotes"\nand a line break', "author": "y"},
    {"id": "c", "text": "", "author": "x"},
    {"id": "d", "text": "naïve — 日本語 🙂", "author": "z"},
]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_gz(path):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    return path


def write_csv(path, rows=ROWS, encoding="utf-8"):
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def write_tsv(path):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(ROWS[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_array(path):
    path.write_text("\ufeff" + json.dumps(ROWS, indent=1), encoding="utf-8")
    return path


def packed(write, ending):
    """Write a file, then pack it by its last ending, zstd in two frames as tools that append leave it."""

    def write_packed(path):
        plain = write(path.with_name("plain" + "".join(path.suffixes[:-1]))).read_bytes()
        if ending == ".gz":
            path.write_bytes(gzip.compress(plain))
        else:
            path.write_bytes(b"".join(zstd(part) for part in (plain[:30], plain[30:])))
        return path

    return write_packed


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def write_shards(path):
    """A folder as data sets on the hub have it: order by name, not by time."""
    (path / "data").mkdir(parents=True)
    for i in (1, 0):
        rows = ROWS[2 * i : 2 * i + 2]
        pq.write_table(pa.Table.from_pylist(rows), path / "data" / f"train-0000{i}-of-00002.parquet")
    (path / "README.md").write_text("text: none")
    return path


def write_line_shards(path):
    path.mkdir()
    for i, row in reversed(list(enumerate(ROWS))):
        write_jsonl(path / f"part-{i}.jsonl", [row])
    return path


def write_dataset(path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


WRITERS = {
    "rows.jsonl": write_jsonl,
    "rows.jsonl.gz": write_gz,
    "rows.csv": write_csv,
    "ROWS.CSV": write_csv,
    "rows.parquet": write_parquet,
    "saved": write_dataset,
    "rows.ndjson": write_jsonl,
    "rows.json": write_array,
    "lines.json": write_jsonl,
    "rows.tsv": write_tsv,
    "rows.csv.gz": packed(write_csv, ".gz"),
    "ROWS.TSV.GZ": packed(write_tsv, ".gz"),
    "rows.jsonl.zst": packed(write_jsonl, ".zst"),
    "rows.csv.zst": packed(write_csv, ".zst"),
    "rows.json.gz": packed(write_array, ".gz"),
    "shards": write_shards,
    "line-shards": write_line_shards,
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_gives_the_same_rows(tmp_path, name):
    path = WRITERS[name](tmp_path / name)
    texts = read_texts(path, group_column="author")
    assert texts.texts == tuple(row["text"] for row in ROWS)
    assert texts.ids == ("a", "b", "c", "d")
    assert texts.groups == ("x", "y", "x", "z")
    assert texts.source == str(path)
    assert read_texts(path, limit=2).texts == texts.texts[:2]
    assert read_texts(str(path)).groups is None
    assert read_texts(path, text_column="author", id_column="id").texts == texts.groups


def test_plain_text_keeps_blank_lines_and_makes_no_row_of_the_last_break(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffone\r\n\n  two \u2028 still two\x0b\nthree\n".encode())
    texts = read_texts(path)
    assert texts.texts == ("one", "", "  two \u2028 still two\x0b", "three")
    path.write_bytes(b"one\n\n")
    assert read_texts(path).texts == ("one", "")
    path.write_bytes(b"\n")
    assert read_texts(path).texts == ("",)


def test_folder_of_text_files_is_sorted_by_relative_path(tmp_path):
    (tmp_path / "b").mkdir()
    for name, text in {
        "c.txt": "C\n",
        "b/a.TXT": "\ufeffA\r\n",
        "b.txt": "B",
        "x.md": "no",
    }.items():
        (tmp_path / name).write_bytes(text.encode())
    texts = read_texts(tmp_path)
    assert texts.ids == ("b.txt", "b/a.TXT", "c.txt")
    assert texts.texts == ("B", "A\r\n", "C\n")


def test_hidden_files_of_a_folder_are_no_texts_and_are_counted(tmp_path, caplog):
    hidden = (".b.txt", ".ipynb_checkpoints/a-checkpoint.txt", "__MACOSX/._a.txt", "__MACOSX/a.txt", "in/.c/d.txt")
    for name in ("a.txt", "in/b.txt", *hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read_texts(tmp_path).ids == ("a.txt", "in/b.txt")
    assert caplog.messages == [f"{tmp_path}: left out 5 hidden file(s)"]
    visible = tmp_path / ".hidden-root"
    visible.mkdir()
    (visible / "a.txt").write_text("a")
    assert read_texts(visible).ids == ("a.txt",)


def test_shards_of_several_splits_kinds_or_with_gaps_are_refused(tmp_path):
    folder = write_shards(tmp_path / "shards")
    data = folder / "data"
    (data / "train-00001-of-00002.parquet").rename(data / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"shards of test, train\. Name a folder"):
        read_texts(folder)
    (data / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"not those of one whole set \(number 00001"):
        read_texts(folder)
    (folder / "LICENSE.txt").write_text("free")
    with pytest.raises(DataError, match=r"several kinds \(\.parquet, \.txt\)"):
        read_texts(folder)
    for name in ("train", "test"):
        (tmp_path / "splits" / name).mkdir(parents=True)
        write_jsonl(tmp_path / "splits" / name / "0.jsonl")
    with pytest.raises(DataError, match=r"shards of test, train"):
        read_texts(tmp_path / "splits")
    assert len(read_texts(tmp_path / "splits" / "test")) == 4


@pytest.mark.parametrize("names", ["train test", "my-train.v2 my_held-out", "members nonmembers", "Train validation"])
def test_files_named_after_several_splits_are_refused(tmp_path, names):
    for name in names.split():
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    with pytest.raises(DataError, match=r"holds shards of \S+, \S+\. Name a folder"):
        read_texts(tmp_path)


def test_files_of_one_split_or_of_none_are_one_set(tmp_path):
    for folder, names in {"one": "train-0 train-1", "none": "contest latest"}.items():
        (tmp_path / folder).mkdir()
        for name in names.split():
            write_jsonl(tmp_path / folder / f"{name}.jsonl", [{"text": name}])
        assert read_texts(tmp_path / folder).texts == tuple(names.split())


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_file_beside_its_packed_copy_is_refused(tmp_path, name):
    (tmp_path / name).write_text("text\nx\n")
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"text\nx\n"))
    with pytest.raises(DataError, match=rf"{name}\.gz: the folder also holds this file uncompressed, as {name}"):
        read_texts(tmp_path)


def chat(messages, ask, tools):
    assert tools is None
    return "".join(f"<{m['role']}>{m['content']}" for m in messages) + ("<assistant>" if ask else "")


CONVERSATION = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def test_where_the_text_is_null_what_stands_in_for_it_is_read(tmp_path):
    rows = [
        {"text": "plain", "messages": CONVERSATION, "prompt": None, "completion": None},
        {"text": None, "messages": CONVERSATION, "prompt": None, "completion": None},
        {"text": None, "messages": None, "prompt": "Why? ", "completion": "So."},
        {"text": None, "messages": None, "prompt": None, "completion": None},
        {"text": "", "messages": CONVERSATION, "prompt": None, "completion": None},
    ]
    jsonl, parquet = write_jsonl(tmp_path / "r.jsonl", rows), tmp_path / "r.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    for path in (jsonl, parquet):
        texts = read_texts(path, chat=chat)
        assert texts.texts == ("plain", "<user>Hi<assistant>Ho", "Why? So.", "", "")
        assert texts.starts == (0, 0, 5, 0, 0)


def test_contents_in_parts_are_joined_and_images_are_refused_by_name(tmp_path):
    def said(*parts):
        return {"messages": [{"role": "user", "content": list(parts)}, CONVERSATION[1]]}

    text = {"type": "text", "text": "Hi"}
    path = write_jsonl(tmp_path / "r.jsonl", [said(text), said(text, {"type": "text", "text": " you"}), said()])
    expected = ("<user>Hi<assistant>Ho", "<user>Hi you<assistant>Ho", "<user><assistant>Ho")
    assert read_texts(path, chat=chat).texts == expected
    rows = [{"prompt": said(text)["messages"][:1], "completion": CONVERSATION[1:]}]
    found = read_texts(write_jsonl(tmp_path / "p.jsonl", rows), chat=chat)
    assert (found.texts, found.starts) == (expected[:1], (len("<user>Hi<assistant>"),))
    write_jsonl(tmp_path / "i.jsonl", [said(text), said(text, {"type": "image_url", "image_url": {"url": "x"}})])
    with pytest.raises(DataError, match=r"line 2: a message with a part of type 'image_url'"):
        read_texts(tmp_path / "i.jsonl", chat=chat)


@pytest.mark.parametrize("content", [{"content": None}, {}])
def test_a_message_that_only_calls_a_tool_reaches_the_template_without_content(tmp_path, content):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "weather"}}], **content}
    rows = [{"messages": [CONVERSATION[0], call]}]
    seen = []

    def note(messages, ask, tools):
        seen.append(messages)
        return str(ask)

    read_texts(write_jsonl(tmp_path / "t.jsonl", rows), chat=note)
    assert seen == [[CONVERSATION[0], {"content": None} | call]]


def test_tools_reach_the_template_and_options_of_it_are_refused(tmp_path):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    rows = [
        {"messages": CONVERSATION, "tools": tools},
        {"messages": CONVERSATION, "tools": json.dumps(tools)},
        {"messages": CONVERSATION, "tools": []},
        {"messages": CONVERSATION},
        {"prompt": CONVERSATION[:1], "completion": CONVERSATION[1:], "tools": tools},
    ]
    seen = []

    def note(messages, ask, tools):
        seen.append(tools)
        return str(ask)

    read_texts(write_jsonl(tmp_path / "t.jsonl", rows), chat=note)
    assert seen == [tools, tools, None, None, tools, tools]
    seen.clear()
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "t.parquet")
    read_texts(tmp_path / "t.parquet", chat=note)
    assert seen == [tools]
    for wrong, said in (
        ({"tools": "weather"}, "column 'tools' holds a str"),
        ({"tools": {"name": "weather"}}, "column 'tools' holds a dict"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "changes what the chat template writes"),
    ):
        with pytest.raises(DataError, match=rf"line 1: .*{said}"):
            read_texts(write_jsonl(tmp_path / "w.jsonl", [{"messages": CONVERSATION} | wrong]), chat=note)
    plain = write_jsonl(tmp_path / "p.jsonl", [{"text": "a", "tools": "of the trade"}])
    assert read_texts(plain).texts == ("a",), "beside a plain text the column means nothing"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_csv_with_byte_order_mark_quotes_and_line_breaks(tmp_path, encoding):
    texts = read_texts(write_csv(tmp_path / "rows.csv", encoding=encoding))
    assert texts.ids == ("a", "b", "c", "d")
    assert texts.texts[1] == 'Comma, "quotes"\nand a line break'


def test_jsonl_with_byte_order_mark_and_blank_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n   \n{"text": "b"}')
    assert read_texts(path).texts == ("a", "b")


def read_standard_input(given_bytes):
    code = (
        "import sys, json; from ltmia.data.reading import read_texts; t = read_texts('-');"
        "print(json.dumps([t.texts, t.source]))"
    )
    source = str(Path(__file__).parents[2] / "src")
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=given_bytes,
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("given_bytes", "expected"),
    [
        (b'\n \n {"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        (b"\n first\n{not json\n", ["", " first", "{not json"]),
    ],
)
def test_standard_input_is_json_lines_or_plain_text(given_bytes, expected):
    assert read_standard_input(given_bytes) == [expected, "standard input"]


def test_ids_are_made_from_content_and_unique(tmp_path):
    rows = [{"text": "same"}, {"text": "other"}, {"text": "same"}, {"text": "same"}, {"text": ""}]
    ids = read_texts(write_jsonl(tmp_path / "rows.jsonl", rows)).ids
    assert ids[2:4] == (f"{ids[0]}-2", f"{ids[0]}-3")
    assert len(set(ids)) == 5
    assert list(ids) == content_ids([row["text"] for row in rows])
    assert len(set(content_ids(["\ud800", "?"]))) == 2


def test_a_made_id_does_not_tell_its_text_to_who_guesses_it():
    """The hash of a text alone would: anyone could hash a guess and look it up."""
    assert hashlib.sha256(b"Jane Doe, positive").hexdigest()[:16] not in content_ids(["Jane Doe, positive", "other"])
    assert content_ids(["same", "a"])[0] != content_ids(["same", "b"])[0]
    assert content_ids(["ab", "c"])[0] != content_ids(["a", "bc"])[0]


def test_a_made_id_never_meets_a_given_one(tmp_path):
    made = content_ids(["x", "same", "same"])
    rows = [{"id": made[2], "text": "x"}, {"text": "same"}, {"text": "same", "id": None}]
    ids = read_texts(write_jsonl(tmp_path / "rows.jsonl", rows)).ids
    assert ids == (made[2], made[1], f"{made[2]}-again")


def test_whole_numbers_are_ids_and_groups(tmp_path):
    rows = [{"key": 7, "text": "x", "patient": 1}, {"key": "8", "text": "y", "patient": 1}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    texts = read_texts(path, id_column="key", group_column="patient")
    assert (texts.ids, texts.groups) == (("7", "8"), ("1", "1"))


def test_null_text_keeps_its_row(tmp_path):
    rows = [{"text": None}, {"text": "x"}]
    jsonl = write_jsonl(tmp_path / "rows.jsonl", rows)
    parquet = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    assert read_texts(jsonl).texts == read_texts(parquet).texts == ("", "x")


@pytest.mark.parametrize("text", ["", "x" * 100_000, "\ud800 half", "a\x00b", "\ufeff", "\r"])
def test_hostile_texts_are_kept_as_they_are(tmp_path, text):
    rows = [{"text": text}, {"text": text}, {"text": "end"}]
    assert read_texts(write_jsonl(tmp_path / "rows.jsonl", rows)).texts == (text, text, "end")
    if "\ud800" not in text:
        assert read_texts(write_csv(tmp_path / "rows.csv", rows)).texts == (text, text, "end")


def test_a_long_field_does_not_change_the_csv_module(tmp_path):
    before = csv.field_size_limit()
    rows = [{"text": "y " * 200_000}]
    assert read_texts(write_csv(tmp_path / "rows.csv", rows)).texts[0] == rows[0]["text"]
    assert csv.field_size_limit() == before


def test_dataset_dict_with_one_split_is_read_and_with_two_is_refused(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "one"))
    assert len(read_texts(tmp_path / "one")) == 4
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(DataError, match=r"splits test, train.*two/test"):
        read_texts(tmp_path / "two")
    assert len(read_texts(tmp_path / "two" / "train")) == 4


def test_hub_reader_loads_a_named_split(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl")
    assert read_texts(f"hf:{folder}[train]").ids == ("a", "b", "c", "d")
    with pytest.raises(DataError, match=r"cannot be loaded"):
        read_texts(f"hf:{folder}[nosuch]")


def test_hub_names():
    assert HubName.parse("hf:imdb[test]") == HubName("imdb", None, "test")
    assert HubName.parse("hf:org/set:en[train]") == HubName("org/set", "en", "train")
    assert HubName.parse("hf:org/set:en[train[:10%]]") == HubName("org/set", "en", "train[:10%]")
    for wrong in ("hf:", "hf:imdb", "hf:imdb[]", "hf::x[test]", "hf:a:b:c[test]", "hf:a[b]c"):
        with pytest.raises(DataError, match=r"expected hf:NAME\[SPLIT\]"):
            HubName.parse(wrong)


TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=40), min_size=1, max_size=8)
ANY_TEXTS = st.lists(st.text(st.characters(), max_size=40), min_size=1, max_size=8)  # surrogates too
few = settings(deadline=None, max_examples=60)


@given(texts=ANY_TEXTS)
@few
def test_jsonl_round_trip(texts, tmp_path_factory):
    path = write_jsonl(tmp_path_factory.mktemp("h") / "r.jsonl", [{"text": t} for t in texts])
    # A pair of escaped surrogates is one sign in JSON, so the oracle is the standard parser.
    assert read_texts(path).texts == tuple(json.loads(json.dumps(texts)))
    assert len(set(read_texts(path).ids)) == len(texts)


@given(texts=ANY_TEXTS)
@few
def test_array_round_trip(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("h") / "r.json"
    path.write_text(json.dumps([{"text": t, "n": {"of": [t]}} for t in texts], indent=len(texts) % 3 or None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "PIECE_BYTES", 7)
        assert read_texts(path).texts == tuple(json.loads(json.dumps(texts)))


@given(texts=TEXTS)
@few
def test_csv_round_trip(texts, tmp_path_factory):
    rows = [{"text": t, "n": str(i)} for i, t in enumerate(texts)]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, ["n", "text"], quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    path = tmp_path_factory.mktemp("h") / "r.csv"
    path.write_bytes(buffer.getvalue().encode())
    assert read_texts(path, id_column="n").texts == tuple(texts)


@given(texts=TEXTS)
@few
def test_parquet_round_trip(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("h") / "r.parquet"
    pq.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), path, row_group_size=3)
    assert read_texts(path).texts == tuple(texts)
