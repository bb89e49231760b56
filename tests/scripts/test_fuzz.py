"""Hostile files of every kind: each is read or refused with an error of ours, by search and by example."""

import gzip
import json
import resource
import subprocess
import sys
from pathlib import Path

import fuzz
import fuzz_readers as readers
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltmia.errors import ConfigError, DataError, LtmiaError, StoreError
from ltmia.evaluation.audit_folder import MARKED, run_in
from ltmia.evaluation.files import read_records, read_results, read_tokens, write_records, write_tokens
from ltmia.evaluation.limits import read_policy
from ltmia.features.store import FeatureStore
from ltmia.lab.reading import read_recipe
from ltmia.ownership import Marker


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tmp_path_factory.mktemp(name) for name in readers.READERS}


def test_the_fuzzer_knows_every_reader() -> None:
    assert tuple(readers.READERS) == fuzz.READERS


@pytest.mark.parametrize("reader", readers.READERS)
def test_valid_files_are_read(reader, folders) -> None:
    """Or the search would only ever see the first check."""
    for case in readers.SEEDS.get(reader, (b"\0",)):
        assert readers.feed(reader, folders[reader], case)


@pytest.mark.parametrize("reader", readers.READERS)
def test_hostile_files_are_read_or_refused(reader, folders) -> None:
    examples = 10 if reader in ("classifier_config", "report") else 80
    changes = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=3)
    kinds = st.sampled_from([b"\0", b"\1", b"\2"]) if reader == "report" else st.just(b"\0")
    changed = st.tuples(kinds, changes).map(lambda c: c[0] + bytes(number for pair in c[1] for number in pair))
    seeds = st.sampled_from(readers.SEEDS.get(reader, (b"\0",)))
    spliced = st.tuples(seeds, st.binary(max_size=8), st.integers(0, 4000)).map(
        lambda parts: parts[0][: parts[2] % (len(parts[0]) + 1)] + parts[1] + parts[0][parts[2] % (len(parts[0]) + 1) :]
    )

    @given(case=changed | spliced | st.binary(max_size=200))
    @settings(max_examples=examples)
    def search(case: bytes) -> None:
        readers.feed(reader, folders[reader], case)

    search()


DEEP = 200_000


@pytest.mark.parametrize(
    ("name", "content", "read", "error"),
    [
        ("recipe.toml", b"a = " + b"[" * DEEP, read_recipe, ConfigError),
        ("policy.toml", b"a = " + b"[" * DEEP, read_policy, ConfigError),
        ("recipe.toml", b"a = 1" + b"0" * 9999, read_recipe, ConfigError),
        ("policy.toml", b"a = 2026-13-45", read_policy, ConfigError),
        ("results.json", b"[" * DEEP, lambda path: read_results(path.parent), StoreError),
        ("manifest.json", b'{"a":' * DEEP, lambda path: FeatureStore(path.parent), StoreError),
        ("records.parquet", b"PAR1" * 999, lambda path: read_records(path.parent), StoreError),
    ],
)
def test_deep_and_huge_values_are_refused(tmp_path: Path, name: str, content: bytes, read, error) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["recipe.toml", "policy.toml"])
def test_a_folder_is_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=name):
        (read_recipe if name == "recipe.toml" else read_policy)(tmp_path / name)


@pytest.mark.parametrize(
    "token", [[None], [["a", None]], [["a"]], [["a", "b", "c"]]], ids=["no list", "a gap", "too few", "too many"]
)
def test_lists_of_tokens_that_do_not_fit_are_refused(tmp_path: Path, token: list) -> None:
    sound = readers.valid_tokens()
    with run_in(tmp_path, Marker(kind=MARKED["audit"])) as run:
        write_tokens({name: sound[name] for name in sound.column_names}, run)
    assert read_tokens(tmp_path) is not None
    write_tokens({"row": [0], "difference": [[0.5, -0.5]], "token": pa.array(token, pa.list_(pa.string()))}, run)
    with pytest.raises(StoreError, match="gaps or differ"):
        read_tokens(tmp_path)


@pytest.mark.parametrize("name", ["id", "n_tokens"])
def test_records_without_a_name_or_a_length_are_refused(tmp_path: Path, name: str) -> None:
    sound = readers.valid_records()
    columns = {column: sound[column] for column in sound.column_names}
    write_records(columns | {name: pa.nulls(2)}, tmp_path, "0" * 16)
    with pytest.raises(StoreError, match=f"{name}.*gaps"):
        read_records(tmp_path)


def texts_outside(start: int, n_tokens: int):
    table = readers.valid_texts()
    for name, value in (("start", start), ("n_tokens", n_tokens)):
        index = table.column_names.index(name)
        values = table.column(name).to_pylist()
        table = table.set_column(index, name, [[value, *values[1:]]])
    return table


@pytest.mark.parametrize(("start", "n_tokens"), [(-1, 1), (3, 1), (0, 2), (0, -1), (2**62, 1), (2, 2**62)])
def test_a_store_hands_out_no_rows_but_its_own(tmp_path: Path, start: int, n_tokens: int) -> None:
    manifest = json.dumps(readers.valid_manifest()).encode()
    with pytest.raises(StoreError, match="damaged"):
        readers.open_store(tmp_path, manifest, readers.changed_table(texts_outside(start, n_tokens), b""))


MEBIBYTE = 2**20


def peak_memory(code: str, *arguments: str) -> int:
    """Run code in a process of its own that may take 2 GiB; return the bytes it took at most."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30,) * 2)\n"
    # Not ru_maxrss, which begins with what the parent held before the new program was loaded.
    tell = "\nprint(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')).split()[1])"
    done = subprocess.run(
        [sys.executable, "-c", limit + code + tell, *arguments], capture_output=True, text=True, check=True
    )
    return 1024 * int(done.stdout.split()[-1])


READ = """
import sys, pyarrow.parquet
from ltmia.data.reading import read_texts
from ltmia.errors import DataError
if len(sys.argv) > 1:
    try:
        read_texts(sys.argv[1])
    except DataError as error:
        assert "MiB" in str(error) or "characters" in str(error), error
    else:
        raise SystemExit("was read")
"""


def test_bombs_take_bounded_memory(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    before = peak_memory(READ)
    sparse = tmp_path / "line.txt"
    with sparse.open("wb") as file:  # ten gigabytes without a line break, and nothing of it on the disk
        file.truncate(10 * 2**30)
    bomb = tmp_path / "bomb.jsonl.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as packed:
        for _ in range(64):
            packed.write(b"x" * MEBIBYTE)
    repeated = tmp_path / "bomb.parquet"
    indices = pa.array([0] * 400, pa.int32())
    pq.write_table(pa.table({"text": pa.DictionaryArray.from_arrays(indices, ["x" * (17 * MEBIBYTE)])}), repeated)
    for path in (sparse, bomb, repeated):
        grown = (peak_memory(READ, str(path)) - before) // MEBIBYTE
        assert grown < 150, f"{path.name}: {grown} MiB"


def test_our_errors_are_all_of_one_family() -> None:
    assert all(issubclass(kind, LtmiaError) for kind in (ConfigError, DataError, StoreError))
    assert resource.RLIMIT_DATA
