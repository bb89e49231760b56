"""The store: what goes in comes out, a killed writer loses nothing, a damaged store is refused."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltmia.errors import StoreError
from ltmia.features.journal import StoredText
from ltmia.features.packing import pack_statistics, row_width, unpack_statistics
from ltmia.features.per_token import per_token_features
from ltmia.features.statistics import token_statistics
from ltmia.features.store import FeatureStore, StoreWriter
from ltmia.records import RaggedStatistics, TokenStatistics

K, VOCAB = 4, 50


def statistics(n: int, seed: int = 0) -> TokenStatistics:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, VOCAB, generator=generator) * 3
    return token_statistics(a, b, torch.randint(0, VOCAB, (n,), generator=generator), K)


def text(row: int, n_tokens: int) -> StoredText:
    return StoredText(row=row, n_tokens=n_tokens, scores={"loss": row + 0.5 if n_tokens else float("nan")})


def writer(folder: Path, fingerprint: str = "same") -> StoreWriter:
    return StoreWriter(folder, fingerprint=fingerprint, k=K, vocab_size=VOCAB)


def finish(store: StoreWriter, n: int) -> None:
    store.finish({"id": [f"t{i}" for i in range(n)]}, {"recipe": "test"})


def test_a_row_takes_at_most_300_bytes_at_k_20() -> None:
    assert 2 * row_width(20) <= 300


def test_packing_keeps_three_digits() -> None:
    tokens = statistics(200)
    again = unpack_statistics(pack_statistics(tokens), K)
    for field in fields(TokenStatistics):
        np.testing.assert_allclose(
            getattr(again, field.name),
            getattr(tokens, field.name),
            rtol=6e-3,
            atol=8e-3,
            err_msg=field.name,
        )
    np.testing.assert_allclose(again.log_ratio, tokens.log_ratio, rtol=1e-3, atol=1e-3)


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_texts_written_in_any_order_come_back_in_input_order(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    order = np.random.default_rng(seed).permutation(len(lengths))
    parts = {int(row): statistics(lengths[row], seed=int(row)) for row in order}
    store = writer(folder)
    for row in parts:
        store.append(parts[row], [text(row, lengths[row])])
    finish(store, len(lengths))

    read = FeatureStore(folder)
    assert read.texts["id"].to_pylist() == [f"t{i}" for i in range(len(lengths))]
    rows = np.arange(len(lengths))[::-1]
    expected = RaggedStatistics(
        tokens=TokenStatistics.concatenate([unpack_statistics(pack_statistics(parts[int(row)]), K) for row in rows]),
        offsets=np.concatenate([[0], np.cumsum(np.array(lengths)[rows])]).astype(np.int64),
        vocab_size=VOCAB,
    )
    for version in ("published", "logratio"):
        found, wanted = read.gather(rows, version), per_token_features(expected, version=version)
        np.testing.assert_array_equal(found.values, wanted.values)
        np.testing.assert_array_equal(found.mask, wanted.mask)
    scores = read.scores("loss")
    assert [s for s in scores if not np.isnan(s)] == [i + 0.5 for i, n in enumerate(lengths) if n]


def test_a_store_without_manifest_does_not_exist(tmp_path: Path) -> None:
    store = writer(tmp_path)
    store.append(statistics(2), [text(0, 2)])
    store.close()
    with pytest.raises(StoreError, match="no manifest"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("torn", ["nothing", "journal", "tokens", "extra_tokens"])
def test_a_killed_writer_goes_on_where_it_stopped(tmp_path: Path, torn: str) -> None:
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    for folder in (undisturbed, killed):
        store = writer(folder)
        store.append(statistics(3, seed=0), [text(0, 1), text(2, 2)])
        store.append(statistics(2, seed=1), [text(1, 2)])
        store.close()
    journal, tokens = killed / "journal.jsonl", killed / "tokens.f16"
    if torn == "journal":  # killed while the last line was being written
        journal.write_bytes(journal.read_bytes()[:-7])
    elif torn == "tokens":  # the machine lost power: the rows never reached the disk
        tokens.write_bytes(tokens.read_bytes()[:-5])
    elif torn == "extra_tokens":  # killed between rows and journal line
        tokens.write_bytes(tokens.read_bytes() + b"xyz")
    for folder in (undisturbed, killed):
        store = writer(folder)
        if 1 not in store.done:
            store.append(statistics(2, seed=1), [text(1, 2)])
        finish(store, 3)
    for name in ("tokens.f16", "texts.parquet"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    ours, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (killed, undisturbed))
    assert {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)} <= {"created"}
    assert not journal.exists()


def altered(file: Path, at: float = 0.5) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(("name", "at", "kept"), [("tokens.f16", 0.5, 1), ("tokens.f16", 0.1, 0)])
def test_rows_altered_before_the_store_is_whole_are_made_again(tmp_path: Path, name: str, at: float, kept: int) -> None:
    store = writer(tmp_path)
    for row in range(3):
        store.append(statistics(2, seed=row), [text(row, 2)])
    store.close()
    altered(tmp_path / name, at)
    again = writer(tmp_path)
    assert again.done == frozenset(range(kept))
    assert again.damage is not None
    assert f"line {kept + 2}" in again.damage
    for row in range(kept, 3):
        again.append(statistics(2, seed=row), [text(row, 2)])
    finish(again, 3)
    expected = b"".join(pack_statistics(statistics(2, seed=row)).tobytes() for row in range(3))
    assert (tmp_path / "tokens.f16").read_bytes() == expected
    assert len(FeatureStore(tmp_path)) == 3


@given(
    line=st.integers(0, 2),
    old=st.sampled_from(["0.5", '"row": ', '"sha256": "', '"n_tokens": ', "same"]),
    data=st.data(),
)
@settings(max_examples=20)
def test_an_altered_line_of_the_journal_is_not_gone_on_from(
    tmp_path_factory: pytest.TempPathFactory, line: int, old: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = writer(folder)
    for row in range(2):
        store.append(statistics(2, seed=row), [text(row, 2)])
    store.close()
    lines = (folder / "journal.jsonl").read_bytes().split(b"\n")
    place = data.draw(st.integers(0, len(lines[line]) - 1))
    place = lines[line].find(old.encode()) + len(old) if old.encode() in lines[line] else place
    changed = bytearray(lines[line])
    changed[place] = ord("7") if changed[place] != ord("7") else ord("8")
    lines[line] = bytes(changed)
    (folder / "journal.jsonl").write_bytes(b"\n".join(lines))
    again = writer(folder)
    assert again.done == frozenset(range(max(line - 1, 0)))
    assert again.damage is not None
    again.close()


def test_rows_of_another_batch_are_no_batch_of_this_store(tmp_path: Path) -> None:
    """Each line is whole, but they are of two stores: the chain of hashes does not hold."""
    for name, seed in (("a", 0), ("b", 1)):
        store = writer(tmp_path / name)
        for row in range(2):
            store.append(statistics(2, seed=seed + row), [text(row, 2)])
        store.close()
    journals = [(tmp_path / name / "journal.jsonl").read_bytes().split(b"\n") for name in "ab"]
    (tmp_path / "a" / "journal.jsonl").write_bytes(b"\n".join([*journals[0][:2], *journals[1][2:]]))
    assert writer(tmp_path / "a").done == frozenset({0})


@pytest.mark.parametrize("name", ["tokens.f16", "texts.parquet", "manifest.json"])
@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_one_altered_bit_is_noticed_and_the_file_named(tmp_path: Path, name: str, at: float) -> None:
    store = writer(tmp_path)
    store.append(statistics(20), [text(0, 20)])
    finish(store, 1)
    FeatureStore(tmp_path)
    if name == "manifest.json":  # a digit of a number, so that it is still JSON
        file = tmp_path / name
        file.write_text(file.read_text().replace('"n_texts": 1', '"n_texts": 3'))
    else:
        altered(tmp_path / name, at)
    with pytest.raises(StoreError, match=name.replace(".", "[.]")):
        FeatureStore(tmp_path)


def test_other_work_does_not_go_on_from_a_stranger(tmp_path: Path) -> None:
    store = writer(tmp_path, "one")
    store.append(statistics(2), [text(0, 2)])
    store.close()
    assert writer(tmp_path, "two").done == frozenset()


def test_missing_and_doubled_rows_are_noticed(tmp_path: Path) -> None:
    store = writer(tmp_path)
    store.append(statistics(2), [text(1, 2)])
    with pytest.raises(StoreError, match="missing or doubled"):
        finish(store, 2)


def test_token_counts_must_add_up(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="add up"):
        writer(tmp_path).append(statistics(2), [text(0, 3)])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("manifest.json", lambda p: p.write_text("{")),
        ("manifest.json", lambda p: p.write_text("[" * 100_000)),
        ("manifest.json", lambda p: p.write_text(json.dumps({"format_version": 99}))),
        ("manifest.json", lambda p: p.write_text(json.dumps({"format_version": 1}))),
        ("texts.parquet", lambda p: p.write_bytes(p.read_bytes()[:40])),
        ("texts.parquet", lambda p: p.unlink()),
        ("tokens.f16", lambda p: p.write_bytes(p.read_bytes()[:-2])),
        ("tokens.f16", lambda p: p.unlink()),
    ],
)
def test_a_damaged_store_is_refused(tmp_path: Path, name: str, damage) -> None:
    store = writer(tmp_path)
    store.append(statistics(2), [text(0, 2)])
    finish(store, 1)
    damage(tmp_path / name)
    with pytest.raises(StoreError, match="extract"):
        FeatureStore(tmp_path)
