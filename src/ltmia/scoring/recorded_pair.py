"""A pair of recordings that takes the place of the models."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ltmia.attacks.table import ATTACKS
from ltmia.data.recording_pairs import join_recordings, rows_by_id
from ltmia.data.recordings import RecordedText, Recording, is_recording, text_sha256
from ltmia.errors import ConfigError, DataError
from ltmia.evaluation.pair_info import ModelInfo, TokenizerInfo
from ltmia.features.columns import LITE_TOP, reads_recordings
from ltmia.features.served import served_statistics
from ltmia.models.tokens import LEAST_IDS, EncodedText
from ltmia.records import ModelStatistics, RaggedStatistics, Texts, TokenStatistics
from ltmia.scoring.extraction import ExtractedBatch, ExtractionConfig, ExtractionRun, score_batches
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.pair_runner import BatchStatistics
from ltmia.shown_names import shown_path

AT_ONCE = 64
"""Texts of one batch."""


def load_recorded_pair(target: str | Path, reference: str | Path | None) -> "RecordedPair":
    """Open the recordings of a fine-tuned target and of its reference, in place of the models.

    Args:
        target: A `.jsonl` or `.jsonl.gz` file, by `ltmia record` or `write_recording`.
        reference: The same for the reference.

    Raises:
        ConfigError: If only one of the two is a recording.
        DataError: If a file cannot be read, is not a recording, or holds too little.
    """
    for name, other in ((target, reference), (reference, target)):
        if not is_recording(str(other)):
            raise ConfigError(
                f"{name} is a recording, but {other} is not: record the other model too (`ltmia record`), and give "
                "the target's recording in place of TARGET and the reference's as `base`"
            )
    return RecordedPair(target=Recording(target), reference=Recording(str(reference)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPair:
    """A pair of recordings, for attacks that need only log-probabilities and ranks. Texts are matched by id."""

    target: Recording
    reference: Recording

    def __post_init__(self) -> None:
        """Refuse a recording of the target with too few top tokens for the features.

        Raises:
            DataError: If it has fewer.
        """
        if self.target.header.n_top < LITE_TOP:
            raise DataError(
                f"{self.target.path}: n_top is {self.target.header.n_top}; expected {LITE_TOP} or more of the target"
            )

    @property
    def models(self) -> None:
        """None, because there are no models."""
        return None

    @property
    def sources(self) -> tuple[str, str]:
        """Paths of the two recordings."""
        return str(self.target.path), str(self.reference.path)

    @property
    def vocab_size(self) -> int:
        """Number of token ids that both models know."""
        return min(recording.header.vocab_size for recording in (self.target, self.reference))

    @property
    def k(self) -> int:
        """Number of top tokens kept per position."""
        return LITE_TOP

    def refuse(self, attacks: Sequence[str], version: str | None, *, reveal: bool = False) -> None:
        """Refuse attacks and options that need the models.

        Raises:
            ConfigError: If anything is refused; the message names it and says what to do.
        """
        refused, cures = [name for name in attacks if not ATTACKS[name].recorded], []
        if refused:
            cures.append("choose `attacks=recorded`, or name attacks that `ltmia attacks` lists as recorded")
        if version is not None and not reads_recordings(version):
            refused.append(f"a classifier of {version!r} features")
            cures.append("choose `classifier=lite`")
        if reveal:
            refused.append("`reveal`")
            cures.append("leave out `reveal`, which needs the tokenizer")
        if refused:
            raise ConfigError(
                f"recordings hold too little for {', '.join(refused)}: {'; '.join(cures)}, or give the models"
            )

    @property
    def default_length(self) -> int:
        """All that is recorded."""
        return sys.maxsize

    def identity(self) -> PairIdentity:
        """Hash both recordings, and describe their models as their headers do."""
        known = {recording.header.tokenizer_sha256 for recording in (self.target, self.reference)}
        return PairIdentity(
            target=_described(self.target),
            reference=_described(self.reference),
            # Two tokenizers may still give these texts the same ids; that is checked id by id.
            tokenizer=TokenizerInfo(sha256=known.pop() if len(known) == 1 else None, vocab_size=self.vocab_size),
        )

    def encode(self, texts: Texts, config: ExtractionConfig) -> list[EncodedText]:
        """Return the token ids of both recordings; read and check all their lines of these texts.

        Raises:
            DataError: If a file is damaged, a text is missing, or the recordings are not of the same texts.
        """
        rows, encoded = rows_by_id(texts), dict[str, EncodedText]()
        for target, reference in join_recordings(self.target, self.reference, rows):
            self._check_text(texts.texts[rows[target.id]], target, reference)
            encoded[target.id] = self._encoded(target, reference, config.max_length)
        return [encoded[name] for name in texts.ids]

    def extract(self, texts: Texts, config: ExtractionConfig, run: ExtractionRun) -> Iterator[ExtractedBatch]:
        """Read the statistics of the texts, and score them."""
        batches = self._batches(texts, run.encoded, run.done, config.k)
        read = texts.texts.__getitem__
        return score_batches(batches, read, run, config, self.vocab_size)

    def _check_text(self, text: str, target: RecordedText, reference: RecordedText) -> None:
        """Check that both lines belong to this text.

        Raises:
            DataError: If not.
        """
        for recording, line in ((self.target, target), (self.reference, reference)):
            if line.text_sha256 is not None and line.text_sha256 != text_sha256(text):
                raise DataError(
                    f"{recording.path}: {line.id[:80]!r} was recorded of another text (text_sha256); record it again"
                )

    def _encoded(self, target: RecordedText, reference: RecordedText, max_length: int) -> EncodedText:
        ids = np.asarray(target.tokens[:max_length], np.int64)
        truncated = True if len(target.tokens) > max_length else target.truncated
        encoded = EncodedText(ids=ids, start=target.n_read, truncated=truncated)
        for name, line in (("target", target), ("reference", reference)):
            if line.reason is not None:
                # Its words may hold the text, and reasons are in files that may be passed on.
                reason = f"the recording of the {name} has no numbers of it, and says why in its line"
                return replace(encoded, reason=reason)
        if target.tokens[:max_length] != reference.tokens[:max_length] or target.n_read != reference.n_read:
            raise DataError(
                f"{self.target.path} and {self.reference.path}: {target.id[:80]!r} has other token ids in the one than "
                "in the other. Record both models with the same `tokenizer` and `max_length`"
            )
        if encoded.n_scored < LEAST_IDS["default"] - 1:
            behind = "" if target.start is None else " and a prompt"
            return replace(encoded, reason=f"{len(ids)} token(s){behind}: too few to score")
        for name, found in zip(
            ("target", "reference"), self._numbers(target, reference, encoded.n_scored), strict=True
        ):
            if n_missing := int((~found.known).sum()):
                reason = f"the recording of the {name} lacks log-probability or rank of {n_missing} token(s)"
                return replace(encoded, reason=reason)
        return encoded

    def _numbers(
        self, target: RecordedText, reference: RecordedText, n: int
    ) -> tuple[ModelStatistics, ModelStatistics]:
        """Return both models' statistics of the first n positions."""
        return (
            target.statistics(self.target.header.n_top).slice(0, n),
            reference.statistics(self.reference.header.n_top).slice(0, n),
        )

    def _batches(
        self, texts: Texts, encoded: Sequence[EncodedText], done: frozenset[int], k: int
    ) -> Iterator[BatchStatistics]:
        """Read the statistics of the scorable texts that are not done."""
        rows = rows_by_id(texts)
        batch: list[tuple[int, TokenStatistics]] = []
        for target, reference in join_recordings(self.target, self.reference, rows):
            row = rows[target.id]
            if row not in done and encoded[row].n_scored:
                found = self._numbers(target, reference, encoded[row].n_scored)
                batch.append((row, served_statistics(*found, k)))
            if len(batch) == AT_ONCE:
                yield self._together(batch)
                batch = []
        if batch:
            yield self._together(batch)

    def _together(self, batch: Sequence[tuple[int, TokenStatistics]]) -> BatchStatistics:
        offsets = np.cumsum([0, *(len(tokens) for _, tokens in batch)], dtype=np.int64)
        tokens = TokenStatistics.concatenate([tokens for _, tokens in batch])
        statistics = RaggedStatistics(tokens=tokens, offsets=offsets, vocab_size=self.vocab_size)
        return BatchStatistics(rows=[row for row, _ in batch], statistics=statistics)


def _described(recording: Recording) -> ModelInfo:
    header = recording.header
    return ModelInfo(
        source=shown_path(header.model),
        revision=header.revision,
        sha256=recording.sha256,
        architecture=None,
        n_parameters=None,
        dtype=None,
        recorded_by=header.recorded_by,
    )
