"""Reads and writes recordings: log-probabilities of one model on texts, computed elsewhere.

The first line is the header, every other line is a text. A recording holds token ids, so protect it like the texts
themselves.
"""

import gzip
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import cached_property
from hashlib import file_digest, sha256
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltmia.data.json_keys import refuse_repeated_keys
from ltmia.data.lines import iterate_lines, open_bytes
from ltmia.errors import ConfigError, DataError
from ltmia.folders import write_whole
from ltmia.records import ModelStatistics

ENDINGS = (".jsonl", ".jsonl.gz")
IMPOSSIBLE = -9999.0
"""Value for minus infinity, which JSON lacks; vLLM's server uses the same."""
SLACK = 1e-3
"""A log-probability may exceed 0, or that of the most likely token, by this much, because servers round."""

LogProbability = Annotated[float, Field(ge=-1e30, le=SLACK)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Line = TypeVar("Line", bound="_Line")


class _Line(BaseModel):
    """Base of all lines: unknown keys, numbers in quotes and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RecordingHeader(_Line):
    """First line of a recording."""

    format_version: Literal[1] = 1
    model: Annotated[str, Field(min_length=1)]
    """Path, hub id, or the server's name for the model."""
    revision: str | None = None
    vocab_size: Annotated[int, Field(ge=1, lt=2**31)]
    """Number of ids that the log-probabilities are normalised over: the width of the logits."""
    n_top: Annotated[int, Field(ge=1, le=1000)]
    """Number of most likely tokens whose log-probabilities are recorded at each position."""
    recorded_by: Annotated[str, Field(min_length=1)]
    """Program, version and dtype."""
    tokenizer_sha256: Sha256 | None = None
    fingerprint: Sha256 | None = None
    """Hash of everything that decides the content, written by `ltmia record`, so that finished work is not repeated."""
    lines_sha256: Sha256 | None = None
    """Hash of all other lines, written by `ltmia record`, so that damage is noticed."""


class RecordedText(_Line):
    """Any other line of a recording: one text."""

    id: Annotated[str, Field(min_length=1)]
    """Id of the text in the file of texts; unique."""
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]
    """Token ids, special ones included; the first is not predicted."""
    start: Annotated[int, Field(ge=1)] | None = None
    """Index in `tokens` of the first predicted token, if a prompt of several tokens comes before it; null: 1."""
    logp: list[LogProbability | None] = []
    """Natural log-probability of each token from `start` on, of the model itself: before temperature, penalties or
    filters. Null: not given."""
    rank: list[Annotated[int, Field(ge=1, lt=2**31)] | None] = []
    """1 + the number of tokens more likely than it."""
    top: list[list[LogProbability] | None] = []
    """Log-probabilities of the `n_top` most likely tokens at each of those positions, in falling order."""
    truncated: bool | None = None
    """Whether the text continues after these tokens; null: not known."""
    text_sha256: Sha256 | None = None
    """Hash of the text in UTF-8, so that another text with the same id is noticed."""
    reason: Annotated[str, Field(min_length=1)] | None = None
    """Why there are no log-probabilities; null where there are."""

    def mistake(self, header: RecordingHeader) -> str | None:
        """Return a description of a contradiction with the header or within the line; None if there is none."""
        if self.reason is not None:
            return "has both a reason and log-probabilities" if self.logp or self.rank or self.top else None
        lengths = [len(self.tokens) - self.n_read, len(self.logp), len(self.rank), len(self.top)]
        if len(set(lengths)) > 1:
            behind = "the first" if self.start is None else "the prompt"
            return f"expected for {lengths[0]} tokens behind {behind} as many " + (
                "logp, rank and top, found {}, {} and {}".format(*lengths[1:])
            )
        if max([*self.tokens, *(rank - 1 for rank in self.rank if rank)]) >= header.vocab_size:
            return f"a token id or a rank lies outside the vocabulary of {header.vocab_size}"
        if any(row is not None and len(row) != header.n_top for row in self.top):
            return f"expected {header.n_top} log-probabilities (n_top of the header) in each part of top"
        return _contradiction(self.statistics(header.n_top))

    @property
    def n_read(self) -> int:
        """Number of tokens before the first predicted one."""
        return self.start or 1

    def statistics(self, n_top: int) -> ModelStatistics:
        """Return the numbers as arrays."""
        missing = [np.nan] * n_top
        top = [missing if row is None else row for row in self.top]
        return ModelStatistics(
            logp=np.array(self.logp, np.float32),
            rank=np.array([rank or 0 for rank in self.rank], np.int32),
            top_logp=np.array(top, np.float32).reshape(-1, n_top),
        )

    @classmethod
    def of(
        cls,
        name: str,
        ids: np.ndarray,
        found: ModelStatistics,
        text: str | None = None,
        *,
        start: int = 1,
        truncated: bool | None = None,
    ) -> "RecordedText":
        """Make a line from arrays, exact to float32."""
        return cls(
            id=name,
            tokens=ids.tolist(),
            start=None if start == 1 else start,
            logp=[None if logp != logp else logp for logp in _numbers(found.logp)],
            rank=[rank or None for rank in found.rank.tolist()],
            top=[None if np.isnan(row).any() else _numbers(row) for row in found.top_logp],
            truncated=truncated,
            text_sha256=text_sha256(text),
        )


def text_sha256(text: str | None) -> str | None:
    """Return the hash by which a recording identifies a text."""
    return None if text is None else sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_recording(source: str | Path) -> bool:
    """Say whether a model argument names a recording."""
    return str(source).lower().endswith(ENDINGS)


def recording_path(path: Path | str) -> Path:
    """Check the name of a recording to be written.

    Raises:
        ConfigError: If it has another ending.
    """
    if not is_recording(path):
        raise ConfigError(f"{path}: expected a name that ends in {' or '.join(ENDINGS)}")
    return Path(path).absolute()


class Recording:
    """A recording on disk. Iterating reads and checks it, one line at a time."""

    def __init__(self, path: Path | str) -> None:
        """Read the header.

        Raises:
            DataError: If the file cannot be read, or its first line is not a header.
        """
        self.path = Path(path)
        with open_bytes(self.path) as stream:
            first = next(iterate_lines(stream, str(path)), None)
        place = f"{path}, line 1"
        self.header = _parsed(RecordingHeader, "" if first is None else first.text, place)
        if "format_version" not in self.header.model_fields_set:
            raise DataError(f"{place}: format_version: missing. Expected the header of a recording.")

    @cached_property
    def sha256(self) -> str:
        """Hash of the file."""
        with self.path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()

    def __iter__(self) -> Iterator[RecordedText]:
        places: dict[str, int] = {}
        digest = sha256()
        with open_bytes(self.path) as stream:
            lines = iterate_lines(stream, str(self.path), kept=False)
            next(lines, None)
            for line in lines:
                digest.update(line.text.encode())
                place = f"{self.path}, line {line.number}"
                text = _parsed(RecordedText, line.text, place)
                if text.id in places:
                    raise DataError(f"{place}: the id {text.id[:80]!r} was already used in line {places[text.id]}.")
                places[text.id] = line.number
                if mistake := text.mistake(self.header):
                    raise DataError(f"{place}: {mistake}. Record the text again.")
                yield text
        if self.header.lines_sha256 not in (None, digest.hexdigest()):
            raise DataError(
                f"{self.path}: lines_sha256 in its header does not match its lines: damaged or edited. Record it "
                "again, or remove that key if you edited it yourself."
            )


def write_recording(path: Path | str, header: RecordingHeader, texts: Iterable[RecordedText]) -> None:
    """Write a recording to a file named `.jsonl` or `.jsonl.gz`; the file appears only when it is complete.

    Raises:
        ConfigError: If the name has another ending.
        DataError: If a text contradicts the header or itself.
    """

    def lines() -> Iterator[str]:
        for text in texts:
            if mistake := text.mistake(header):
                raise DataError(f"the text {text.id[:80]!r}: {mistake}")
            yield as_line(text)

    # A hash in the given header would be of other lines.
    write_lines(recording_path(path), header.model_copy(update={"lines_sha256": None}), lines())


def write_lines(path: Path, header: RecordingHeader, lines: Iterable[str]) -> None:
    """Write a recording from lines made by `as_line`."""

    def write(part: Path) -> None:
        with part.open("wb") as raw, ExitStack() as opened:
            file: BufferedIOBase = raw
            if path.suffix.lower() == ".gz":
                # No name and no time inside: the same recording is the same file.
                file = opened.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0, compresslevel=6))
            file.write(as_line(header).encode())
            file.writelines(line.encode() for line in lines)

    write_whole(path, write)


def as_line(part: RecordingHeader | RecordedText) -> str:
    """Return the line of a header or a text."""
    return part.model_dump_json(exclude_none=True) + "\n"


def _parsed(kind: type[Line], line: str, place: str) -> Line:
    try:
        found = kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{place}: {key + ': ' if key else ''}{first['msg']}. See recordings in docs/formats.md."
        ) from None  # the message of pydantic would show the line
    refuse_repeated_keys(line, place)
    return found


def _contradiction(found: ModelStatistics) -> str | None:
    """Describe a contradiction between the values of a position; None if there is none."""
    known = found.known
    logp, rank, top = found.logp[known], found.rank[known], found.top_logp[known]
    if (np.diff(top, axis=1) > SLACK).any():
        return "the log-probabilities of a part of top rise; expected the most likely token's first"
    if (logp > top[:, 0] + SLACK).any():
        return "a token is more likely than the most likely one: logp lies above the first of top"
    if ((rank == 1) & (logp < top[:, 0] - SLACK)).any():
        return "a token of rank 1 is less likely than the most likely one: its logp lies below the first of top"
    return None


def _numbers(values: np.ndarray) -> list[float]:
    """Round to nine digits, which are enough to read a float32 back exactly."""
    return [float(f"{value:.9g}") for value in np.where(values == -np.inf, np.float32(IMPOSSIBLE), values)]
