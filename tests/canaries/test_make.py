"""Folders of canaries: the file holds what the key says, the key is private, and changed files are noticed."""

import json
import stat
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from killed import killed_at_size
from ltmia import folders
from ltmia.canaries import make as making
from ltmia.canaries.key import ABOUT, KEY_FILE, read_key
from ltmia.canaries.make import CanaryConfig, make_canaries, toss
from ltmia.data.duplicates import normalise_text
from ltmia.data.reading import read_texts
from ltmia.errors import ConfigError, DataError
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.folders import mark_folder
from ltmia.models.pair import Pair
from ltmia.ownership import hashes_of_files, read_marker
from ltmia.records import Texts

TEXTS = [f"Crate {i * 37 % 101} of the cargo holds {i} lamps and a letter." for i in range(30)]
CONFIG = CanaryConfig(n_canaries=24, repeats=(1, 3), n_tokens=16, seed=1)


@pytest.fixture(scope="module")
def pair() -> Pair:
    model = build_base(TinyConfig(model_type="gpt2", vocab_size=300, hidden_size=16, n_layers=1), seed=0)
    return Pair(target=model, reference=model, tokenizer=train_tokenizer(TEXTS, 300))


@pytest.fixture
def training(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    rows = [{"id": f"t{i}", "text": text, "patient": "p"} for i, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_training_file_holds_each_canary_as_often_as_the_key_says(pair: Pair, training: Path) -> None:
    before, out = training.read_bytes(), training.parent / "canaries"
    made = make_canaries(pair, training, out, read_texts, config=CONFIG)
    assert training.read_bytes() == before
    key, there = made.key, Counter(read_texts(out / "train.jsonl").texts)
    assert len(key.texts) == len({normalise_text(text) for text in (*key.texts.texts, *TEXTS)}) - len(TEXTS) == 24
    for text, inserted, repeats in zip(key.texts.texts, key.inserted, key.repeats, strict=True):
        assert there[text] == (repeats if inserted else 0)
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows if row["text"] in TEXTS] == TEXTS
    assert len({row["id"] for row in rows}) == len(rows) == made.n_rows + made.n_copies
    assert {row["patient"] for row in rows if row["text"] not in TEXTS} == {None}
    assert (len(key.members), len(key.nonmembers)) == (sum(key.inserted), 24 - sum(key.inserted))
    places = [i for i, row in enumerate(rows) if row["text"] not in TEXTS]
    assert max(places) - min(places) > len(rows) / 2
    for path, mode in ((out / "private", 0o700), (out / KEY_FILE, 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert {path.name for path in training.parent.iterdir()} == {"train.jsonl", "canaries"}


def test_the_same_command_gives_the_same_files_and_samples_only_once(
    pair: Pair, training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = training.parent / "first", training.parent / "second"
    for out in (first, second):
        make_canaries(pair, training, out, read_texts, config=CONFIG)
    for name in ("train.jsonl", KEY_FILE):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    with pytest.raises(ConfigError, match=r"with other settings: seed \(1 there, 2 now\)"):
        make_canaries(pair, training, first, read_texts, config=replace(CONFIG, seed=2))
    made = make_canaries(pair, training, second, read_texts, config=replace(CONFIG, seed=2), overwrite=True)
    assert (first / KEY_FILE).read_bytes() != (second / KEY_FILE).read_bytes()
    assert stat.S_IMODE((second / "private").stat().st_mode) == 0o700
    monkeypatch.setattr(making, "sample_texts", None)
    assert make_canaries(pair, training, second, read_texts, config=replace(CONFIG, seed=2)) == made


def test_a_coin_decides_and_knows_nothing_of_the_repeats() -> None:
    repeats, inserted = toss(CanaryConfig(n_canaries=20_000, repeats=(1, 4, 16)))
    assert set(repeats.tolist()) == {1, 4, 16}
    for times in (1, 4, 16):
        share = inserted[repeats == times].mean()
        assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(20_000 / 3)  # five standard errors
        assert abs((repeats == times).mean() - 1 / 3) < 0.02
    assert (toss(CanaryConfig(seed=1))[1] != toss(CanaryConfig(seed=2))[1]).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.7}, "expected 0.8 or more.*2606.10481"),
        ({"temperature": float("nan")}, "expected 0.8 or more"),
        ({"n_canaries": 19}, "expected 20 or more"),
        ({"n_tokens": 15}, "expected 16 or more"),
        ({"repeats": ()}, "all different"),
        ({"repeats": (1, 1)}, "all different"),
        ({"repeats": (0, 2)}, "numbers from 1 to 10,000"),
        ({"repeats": (1, 10**30)}, "numbers from 1 to 10,000"),
        ({"text_column": "id"}, "canaries need this column"),
    ],
)
def test_options_that_measure_nothing_are_refused(options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CanaryConfig(**options)


def test_changed_files_are_noticed(pair: Pair, training: Path) -> None:
    out, other = training.parent / "canaries", training.parent / "other"
    make_canaries(pair, training, out, read_texts, config=CONFIG)
    make_canaries(pair, training, other, read_texts, config=replace(CONFIG, seed=2))
    assert read_key(out, read_texts).training_file == "as written"
    with_canaries, key = out / "train.jsonl", out / KEY_FILE
    lines, said = with_canaries.read_text().splitlines(), key.read_text()
    with_canaries.write_text("\n".join([*lines[::-1], '{"id": "one more", "text": "A new row."}']))
    assert read_key(out, read_texts).training_file == "recounted"
    once = {json.loads(line)["text"]: line for line in lines}
    with_canaries.write_text("\n".join(once.values()))  # repeats removed
    with pytest.raises(ConfigError, match=r"was changed, and \d+ of 24 canaries, such as canary-\d\d, are no longer"):
        read_key(out, read_texts)
    with pytest.raises(ConfigError, match="was changed since ltmia wrote it"):
        make_canaries(pair, training, out, read_texts, config=CONFIG)
    with_canaries.unlink()
    assert read_key(out, read_texts).training_file == "missing"
    key.write_text((other / KEY_FILE).read_text())
    with pytest.raises(ConfigError, match="is not the key that was written here"):
        read_key(out, read_texts)
    key.write_text(said)
    assert read_key(out, read_texts).training_file == "missing"
    key.unlink()
    with pytest.raises(ConfigError, match="missing; without the key nobody knows"):
        read_key(out, read_texts)
    with pytest.raises(ConfigError, match="expected a folder written by `ltmia canaries make`"):
        read_key(training.parent, read_texts)


def test_canaries_that_the_training_file_holds_already_are_noticed(pair: Pair, training: Path) -> None:
    def as_a_chat(path: str, **options: object) -> Texts:
        texts = read_texts(path, **options)
        return replace(texts, texts=tuple(f"<user> {text}" for text in texts.texts))

    once, twice = training.parent / "once", training.parent / "twice"
    make_canaries(pair, training, once, as_a_chat, config=CONFIG)
    with pytest.raises(DataError, match=r"\d+ of 24 canaries, such as canary-\d\d, would not be in the copy"):
        make_canaries(pair, once / "train.jsonl", twice, as_a_chat, config=CONFIG)
    assert not twice.exists()
    make_canaries(pair, once / "train.jsonl", twice, as_a_chat, config=replace(CONFIG, seed=2))


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"training_file": "../train.jsonl"}, {}, "its marker was changed; training_file"),
        ({"training_file": 3}, {}, "its marker was changed; training_file"),
        ({"repeats": None}, {}, "its marker was changed; repeats"),
        ({"repeats": [1, 10**30]}, {}, "its marker was changed; repeats.1"),
        ({"temperature": "hot"}, {}, "its marker was changed; temperature"),
        ({}, {"inserted": True, "repeats": 10**30}, "not a key of canaries"),
        ({}, {"inserted": True, "repeats": 7}, "do not fit the settings"),
        ({}, {"inserted": True, "repeats": 1, "more": 1}, "not a key of canaries"),
    ],
)
def test_a_folder_by_somebody_hostile_is_refused(
    pair: Pair, training: Path, changes: dict, key: dict, said: str
) -> None:
    out = training.parent / "canaries"
    make_canaries(pair, training, out, read_texts, config=CONFIG)
    if key:
        first, *others = (out / KEY_FILE).read_text().splitlines()
        lines = [json.dumps(json.loads(first) | {ABOUT: key}), *others]
        (out / KEY_FILE).write_text("".join(f"{line}\n" for line in lines))
    marker = read_marker(out)
    marker = marker.model_copy(update={"sha256": hashes_of_files(out, marker.files)})
    mark_folder(out, marker.model_copy(update={"settings": marker.settings | changes}))
    with pytest.raises((ConfigError, DataError), match=said):
        read_key(out, read_texts)


def test_a_killed_run_leaves_nothing_beside_the_folder(
    pair: Pair, training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = training.parent / "canaries"
    with monkeypatch.context() as killed:
        killed.setattr(folders, "move_into_place", lambda *_: 1 / 0)
        killed.setattr(folders.shutil, "rmtree", lambda *_, **__: None)  # a killed process removes nothing
        with pytest.raises(ZeroDivisionError):
            make_canaries(pair, training, out, read_texts, config=CONFIG)
    assert not out.exists()
    assert list(folders.work_path(out).rglob(KEY_FILE))
    make_canaries(pair, training, out, read_texts, config=CONFIG)
    assert {path.name for path in training.parent.iterdir()} == {"train.jsonl", "canaries"}


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_a_run_killed_while_it_writes_leaves_no_training_file(pair: Pair, training: Path, share: float) -> None:
    whole, out = training.parent / "whole", training.parent / "canaries"

    def make(folder: Path) -> None:
        make_canaries(pair, training, folder, read_texts, config=CONFIG)

    make(whole)
    size = int((whole / "train.jsonl").stat().st_size * share)
    for _ in range(2):  # the second run removes what the first one left
        killed_at_size(size, lambda: make(out))
    [torn] = folders.work_path(out).rglob("train.jsonl")
    assert torn.stat().st_size == size
    assert not out.exists()
    make(out)
    for name in ("train.jsonl", KEY_FILE):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert {path.name for path in training.parent.iterdir()} == {"train.jsonl", "whole", "canaries"}


def test_a_folder_of_something_else_is_left_alone(pair: Pair, training: Path) -> None:
    out = training.parent / "taken"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds .notes\.txt."):
        make_canaries(pair, training, out, read_texts, config=CONFIG)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    with pytest.raises(ConfigError, match="is, or lies inside"):
        make_canaries(pair, training, training, read_texts, config=CONFIG)
