"""Writes a recording: one model's log-probabilities on texts, for an audit elsewhere."""

import json
import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ltmia.data.recording_lines import LinesFile
from ltmia.data.recording_pairs import rows_by_id
from ltmia.data.recordings import RecordedText, Recording, RecordingHeader, recording_path, text_sha256, write_lines
from ltmia.errors import ConfigError, DataError
from ltmia.features.columns import LITE_TOP
from ltmia.features.served import model_statistics
from ltmia.folders import named_errors, remove_work_folder, work_folder, work_path
from ltmia.models.batching import BatchSize, Halving
from ltmia.models.forward import batches_to_run, forward_target
from ltmia.models.identity import ModelIdentity, tokenizer_sha256
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText, hash_encoded
from ltmia.ownership import read_marker
from ltmia.progress import Report, silent
from ltmia.records import ModelStatistics, Texts, hash_strings
from ltmia.runtime import dtype_name
from ltmia.scoring.extraction import DEFAULT_LENGTH, ExtractionConfig, encode

LINES_FILE = "lines.jsonl"

Batches = Generator[list[tuple[int, RecordedText]], None, None]
"""Rows of some texts with their lines, batch by batch."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordConfig:
    """Settings of a recording."""

    max_length: int = DEFAULT_LENGTH
    """Largest number of token ids per text; the rest is not read."""
    batch_size: BatchSize = 16
    """Texts of full length per forward pass."""


def record_model(
    pair: Pair,
    texts: Texts,
    out: Path | str,
    *,
    config: RecordConfig | None = None,
    overwrite: bool = False,
    report: Report = silent,
) -> Recording:
    """Record the log-probabilities of a pair's target on texts; the reference is not run.

    Every batch is kept in a hidden folder beside `out` until the file is whole; the same call continues from there, and
    does nothing if the file already exists.

    Args:
        pair: Pair whose target is recorded, for example from `load_alone`.
        texts: Texts with unique ids.
        out: A name that ends in `.jsonl` or `.jsonl.gz`.
        config: Options.
        overwrite: Replace a recording of another model, other texts or other settings.
        report: Called with progress.

    Raises:
        ConfigError: If the name has another ending, another run is at work on it, or something else is there.
        DataError: If two texts have one id.
    """
    config = config or RecordConfig()
    encoded = encode(pair, texts.texts, _reading(config), texts.starts)
    header = _header(pair, texts, encoded, config)

    def work(lines: LinesFile) -> RecordingWork:
        batches = _recorded(pair, texts, encoded, config, frozenset(lines.places))
        return RecordingWork(header=header, batches=batches)

    return write_resumably(out, texts, header.fingerprint, work, overwrite=overwrite, report=report)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingWork:
    """What is left to do of a recording."""

    header: RecordingHeader
    """Header of the finished file."""
    batches: Batches
    """Rows and lines of the texts that are not recorded yet."""


def write_resumably(
    out: Path | str,
    texts: Texts,
    fingerprint: str | None,
    work: Callable[[LinesFile], RecordingWork],
    *,
    overwrite: bool,
    report: Report,
) -> Recording:
    """Write a recording batch by batch; the same call continues a run that was killed.

    Args:
        out: A name that ends in `.jsonl` or `.jsonl.gz`.
        texts: Texts with unique ids.
        fingerprint: Fingerprint of the header.
        work: Given the lines that an earlier run recorded, returns what is left to do.
        overwrite: Replace a recording with another fingerprint, finished or not.
        report: Called with progress.

    Raises:
        ConfigError: If the name has another ending, another run is at work on it, or something else is there.
        DataError: If two texts have one id.
    """
    out, rows = recording_path(out), rows_by_id(texts)
    if _is_done(out, fingerprint, overwrite):
        remove_work_folder(out)
        return Recording(out)
    _refuse_other_lines(out, fingerprint, overwrite)
    with work_folder(out, {"fingerprint": fingerprint}) as folder:
        with named_errors(out), closing(LinesFile(folder / LINES_FILE, rows)) as lines:
            if lines.damage:
                log.warning("%s; that text and the following ones are recorded again", lines.damage)
            left = work(lines)
            with closing(left.batches) as batches:
                for batch in batches:
                    lines.append(batch)
                    report("recording", len(lines.places), len(texts))
            whole = left.header.model_copy(update={"lines_sha256": lines.sha256()})
            write_lines(out, whole, lines.in_order())
        remove_work_folder(out)
    return Recording(out)


def _reading(config: RecordConfig) -> ExtractionConfig:
    return ExtractionConfig(max_length=config.max_length, batch_size=config.batch_size)


def _header(pair: Pair, texts: Texts, encoded: Sequence[EncodedText], config: RecordConfig) -> RecordingHeader:
    tokenizer, model = tokenizer_sha256(pair.tokenizer), ModelIdentity.of(pair.target).key
    return RecordingHeader(
        model=pair.target_origin.source,
        revision=pair.target_origin.revision,
        vocab_size=pair.target_runner.vocab_size,
        n_top=LITE_TOP,
        recorded_by=f"ltmia {version('ltmia')}, transformers {version('transformers')}, {dtype_name(pair.dtype)}",
        tokenizer_sha256=tokenizer,
        fingerprint=fingerprint_of([model, tokenizer, config.max_length, LITE_TOP], texts, encoded),
    )


def fingerprint_of(settings: Sequence[object], texts: Texts, encoded: Sequence[EncodedText]) -> str:
    """Hash everything that decides the content of a recording; `settings` are JSON values."""
    digest = sha256(json.dumps(settings).encode())
    hash_strings(digest, (*texts.texts, *texts.ids, *map(str, texts.starts or ())))
    hash_encoded(digest, encoded)
    return digest.hexdigest()


def _is_done(out: Path, fingerprint: str | None, overwrite: bool) -> bool:
    """Say whether the recording exists and is complete.

    Raises:
        ConfigError: If there is another file, or a recording of other work, or an edited one, that may not be replaced.
    """
    if not os.path.lexists(out):
        return False
    try:
        there = Recording(out)
    except DataError as error:
        raise ConfigError(
            f"{out}: exists and is not a recording by ltmia. Nothing was changed. Choose another name."
        ) from error
    found = there.header.fingerprint
    if found == fingerprint:
        damage = _damage(there)
        if damage is not None and not overwrite:  # it may be somebody's work: a killed run leaves no half file
            raise ConfigError(f"{damage} Nothing was changed. Make it again with `overwrite=True`.")
        return damage is None
    if found is None:
        raise ConfigError(f"{out}: a recording that ltmia did not make. Nothing was changed. Choose another name.")
    if overwrite:
        return False
    raise ConfigError(
        f"{out}: a recording of another model, other texts or other settings. Nothing was changed. Choose another "
        "name, or replace it with `overwrite=True`."
    )


def _refuse_other_lines(out: Path, fingerprint: str | None, overwrite: bool) -> None:
    """Refuse to empty the folder of an unfinished recording of other work: its lines may have cost days.

    Raises:
        ConfigError: If it holds lines, and may not be replaced.
    """
    folder = work_path(out)
    found, lines = read_marker(folder), folder / LINES_FILE
    is_other = found is not None and found.settings.get("fingerprint") != fingerprint
    if is_other and not overwrite and lines.is_file() and lines.stat().st_size:
        raise ConfigError(
            f"{out}: an unfinished recording of another model, other texts or other settings lies in {folder.name}. "
            "Nothing was changed. Finish it with its own command, choose another name, or replace it with "
            "`overwrite=True`."
        )


def _damage(recording: Recording) -> str | None:
    """Describe what is wrong with a recording; None if nothing is."""
    try:
        n_texts = sum(1 for _ in recording)  # reads and checks every line
    except DataError as error:
        return str(error)
    return None if n_texts else f"{recording.path}: holds no text."


def _recorded(
    pair: Pair, texts: Texts, encoded: Sequence[EncodedText], config: RecordConfig, done: frozenset[int]
) -> Batches:
    """Run the target over texts that are not done, in the batches of an extraction; unscorable texts first."""
    unscorable = [row for row, text in enumerate(encoded) if text.reason and row not in done]
    yield [(row, recorded_line(texts, row, encoded[row], None)) for row in unscorable]
    batches = batches_to_run(pair, encoded, config.batch_size, done)
    for part in Halving(encoded).run_all(
        batches, lambda rows: (rows, target_statistics(pair, [encoded[i] for i in rows]))
    ):
        yield [(row, recorded_line(texts, row, encoded[row], found)) for row, found in zip(*part, strict=True)]


def target_statistics(pair: Pair, texts: Sequence[EncodedText]) -> list[ModelStatistics]:
    """Run the target on one batch; return the statistics of each text."""
    chunks = [model_statistics(logits, truth, LITE_TOP) for logits, truth in forward_target(pair, texts)]
    whole = ModelStatistics.concatenate(chunks)
    stops = np.cumsum([text.n_scored for text in texts])
    return [whole.slice(stop - text.n_scored, stop) for stop, text in zip(stops.tolist(), texts, strict=True)]


def recorded_line(texts: Texts, row: int, encoded: EncodedText, found: ModelStatistics | None) -> RecordedText:
    """Return the line of a text; `found` is None if it cannot be scored."""
    reason = encoded.reason
    if found is not None and not found.rank.all():
        reason = "the model gives NaN logits on it"
    if found is None or reason is not None:
        return RecordedText(
            id=texts.ids[row],
            tokens=encoded.ids.tolist(),
            truncated=encoded.truncated,
            text_sha256=text_sha256(texts.texts[row]),
            reason=reason,
        )
    return RecordedText.of(
        texts.ids[row],
        encoded.ids,
        found,
        texts.texts[row],
        start=encoded.start,
        truncated=encoded.truncated,
    )
