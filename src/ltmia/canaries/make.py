"""Makes canaries: samples texts, tosses a coin for each, and mixes those it chose into a copy of a training file."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path

import numpy as np

from ltmia.canaries.key import (
    ABOUT,
    KEY_FILE,
    KIND,
    MOST_COPIES,
    CanaryKey,
    Reader,
    key_in,
    key_lines,
    miscounted,
    read_key,
)
from ltmia.canaries.rows import ID, columns_of, form_of, new_ids
from ltmia.canaries.sampling import SampleConfig, sample_texts
from ltmia.canaries.training_file import Columns, TableFile, TextFile, first_rows, read_training_file
from ltmia.data.duplicates import normalise_text
from ltmia.errors import ConfigError, DataError
from ltmia.evaluation.epsilon import FEWEST_RECORDS
from ltmia.folders import remove_work_folder, work_folder, write_folder
from ltmia.models.identity import ModelIdentity, tokenizer_sha256
from ltmia.models.pair import Pair
from ltmia.ownership import Marker, check_folder, read_marker, refuse_inputs
from ltmia.progress import Report, silent

LOWEST_TEMPERATURE = 0.8
"""Lowest temperature to sample canaries at (arXiv 2606.10481)."""
FEWEST_TOKENS = 16
COINS, ORDER, IDS = ((0, stream) for stream in (1, 2, 3))
"""Streams of random numbers that are independent of those of the sampled texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryConfig:
    """Options for canaries."""

    n_canaries: int = 300
    repeats: tuple[int, ...] = (1, 4, 16)
    """Numbers of times that canaries are inserted; each canary gets one of them at random."""
    temperature: float = 1.0
    n_tokens: int = 64
    """Tokens sampled for each canary."""
    beginning: str = ""
    """Text after which the model writes canaries; no part of them."""
    text_column: str = "text"
    seed: int = 0

    @property
    def sampling(self) -> SampleConfig:
        """Options of sampling."""
        return SampleConfig(
            n_texts=self.n_canaries,
            n_tokens=self.n_tokens,
            temperature=self.temperature,
            beginning=self.beginning,
            seed=self.seed,
        )

    def __post_init__(self) -> None:
        """Refuse options with which canaries would measure nothing.

        Raises:
            ConfigError: If there is one.
        """
        if not self.temperature >= LOWEST_TEMPERATURE or self.temperature == float("inf"):
            raise ConfigError(
                f"temperature = {self.temperature:g}: expected {LOWEST_TEMPERATURE} or more. Below, an LM writes what "
                "it finds likely anyway, and such canaries are hard to recognise after training (arXiv 2606.10481)"
            )
        if self.n_canaries < FEWEST_RECORDS:
            raise ConfigError(f"n_canaries = {self.n_canaries}: expected {FEWEST_RECORDS} or more, better hundreds")
        if self.n_tokens < FEWEST_TOKENS:
            raise ConfigError(f"n_tokens = {self.n_tokens}: expected {FEWEST_TOKENS} or more")
        if not self.repeats or len(set(self.repeats)) < len(self.repeats):
            raise ConfigError(f"repeats = {list(self.repeats)}: expected one or more numbers, all different")
        if min(self.repeats) < 1 or max(self.repeats) > MOST_COPIES:
            raise ConfigError(f"repeats = {list(self.repeats)}: expected numbers from 1 to {MOST_COPIES:,}")
        if self.text_column in (ID, ABOUT):
            raise ConfigError(f"text_column = {self.text_column!r}: canaries need this column; name another one")


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeCanaries:
    """A training file with canaries, and their key."""

    training_file: Path
    n_rows: int
    """Rows of the training file without canaries."""
    n_copies: int
    """Rows that are canaries."""
    key: CanaryKey


def make_canaries(
    pair: Pair,
    training: Path,
    out: Path,
    read: Reader,
    *,
    config: CanaryConfig | None = None,
    overwrite: bool = False,
    report: Report = silent,
) -> MadeCanaries:
    """Write a copy of a training file with canaries, and the key, into a folder; the file itself stays as it is.

    A fair coin decides for each canary whether it is inserted, so that the bound on epsilon of an audit of these
    canaries is valid (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846). The same call gives the same files.

    Args:
        pair: Its target writes the canaries: the base that will be fine-tuned, or another LM.
        training: File of training texts.
        out: Folder to write.
        read: Reads the texts of the training file.
        config: Options.
        overwrite: Replace canaries made with other options, or for another file.
        report: Called with progress.

    Raises:
        ConfigError: If `out` is refused (`ownership.check_folder`), or the model gives too few different texts.
        DataError: If the training file cannot be read, rows cannot be put into it, or it holds canaries already.
        ModelError: If the model cannot write text.
    """
    config = config or CanaryConfig()
    refuse_inputs(out, [pair.target_origin.source, training])
    texts = read(str(training), text_column=config.text_column)
    file = read_training_file(training)
    marker = _marker(pair, training, config)
    check_folder(out, marker, overwrite=overwrite)
    if not _is_done(out, marker):
        form, like = form_of(first_rows(file), config.text_column, str(training))
        refused = frozenset(map(normalise_text, texts.texts))
        sampled = sample_texts(pair, config.sampling, refused=refused, report=report)
        columns = [columns_of(form, config.text_column, text) for text in sampled]

        def write(folder: Path) -> None:
            _write(folder, file=file, columns=columns, like=like, taken=texts.ids, config=config)
            _count(folder, marker, training, read)

        with work_folder(out, marker.settings) as work:
            write_folder(out, write, marker, overwrite=overwrite, work=work)
            (out / KEY_FILE).parent.chmod(0o700)
        remove_work_folder(out)
    key = read_key(out, read)
    n_copies = sum(times for times, there in zip(key.repeats, key.inserted, strict=True) if there)
    return MadeCanaries(training_file=out / training.name, n_rows=len(file), n_copies=n_copies, key=key)


def _write(
    folder: Path,
    *,
    file: TextFile | TableFile,
    columns: Sequence[Columns],
    like: Columns,
    taken: Sequence[str],
    config: CanaryConfig,
) -> None:
    """Toss the coins, and write the training file with canaries, and the key.

    Args:
        folder: Empty.
        file: The training file.
        columns: Columns that hold each canary.
        like: A row of the file, whose other columns are left empty.
        taken: Ids of its rows.
        config: Options.
    """
    repeats, inserted = toss(config)
    copies = np.repeat(np.flatnonzero(inserted), repeats[inserted])
    rng = np.random.default_rng([config.seed, *ORDER])
    rows: list[Columns] = [{**dict.fromkeys(like), **columns[i]} for i in rng.permutation(copies)]
    rows = _with_ids(rows, like, taken, np.random.default_rng([config.seed, *IDS]))
    places = np.sort(rng.choice(len(file) + len(rows), len(rows), replace=False)).tolist()
    file.written(rows, places, folder / file.path.name)
    _write_private(folder / KEY_FILE, key_lines(columns, inserted.tolist(), repeats.tolist()))


def toss(config: CanaryConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return for each canary how often it would be inserted, and whether it is; the two are independent."""
    rng = np.random.default_rng([config.seed, *COINS])
    return rng.choice(config.repeats, config.n_canaries), rng.random(config.n_canaries) < 0.5


def _count(folder: Path, marker: Marker, training: Path, read: Reader) -> None:
    key = key_in(folder, marker.settings, read, "as written")
    if wrong := miscounted(folder, key, read):
        raise DataError(
            f"{training}: {len(wrong)} of {len(key.texts)} canaries, such as {wrong[0]}, would not be in the copy as "
            "often as the key says. If the file holds canaries of an earlier run, give the file without them, or take "
            "another seed."
        )


def _with_ids(rows: list[Columns], like: Columns, taken: Sequence[str], rng: np.random.Generator) -> list[Columns]:
    """Give each row an id of its own if the rows of the file have ids."""
    if like.get(ID) in (None, ""):
        return rows
    return [{**row, ID: name} for row, name in zip(rows, new_ids(like[ID], taken, len(rows), rng), strict=True)]


def _marker(pair: Pair, training: Path, config: CanaryConfig) -> Marker:
    with training.open("rb") as file:
        sha256 = file_digest(file, "sha256").hexdigest()
    made_of = {
        "training_file": training.name,
        "training_sha256": sha256,
        "model": ModelIdentity.of(pair.target).key,
        "tokenizer": tokenizer_sha256(pair.tokenizer),
    }
    return Marker(kind=KIND, settings=asdict(config) | made_of)


def _is_done(out: Path, marker: Marker) -> bool:
    found = read_marker(out)
    return (
        found is not None
        and found.settings == marker.settings
        and bool(found.files)
        and all((out / name).is_file() for name in found.files)
    )


def _write_private(path: Path, content: str) -> None:
    path.parent.mkdir(mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(content)
