"""Reads the weights for an audit: scores texts by how much of their gradient is in the update of the weights."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ltmia.attacks.table import CHECKPOINTS
from ltmia.errors import ConfigError, DataError, LtmiaError, ModelError, StoreError
from ltmia.evaluation.pair_info import ModelInfo
from ltmia.evaluation.results import TrainingRunInfo, UpdateInfo
from ltmia.models.pair import Pair
from ltmia.progress import Report
from ltmia.records import Texts
from ltmia.scoring.audited_pair import AuditedPair, LoadedPair
from ltmia.scoring.extraction import ExtractionConfig
from ltmia.scoring.identity import PairIdentity
from ltmia.shown_names import shown_path
from ltmia.weights.checkpoints import RunPath, RunScores, forget_checkpoints, read_path, score_run
from ltmia.weights.gradient_file import check_room
from ltmia.weights.update_attack import UpdateAttack, UpdateScores, WeightsConfig

ObserverChoice = Literal["auto", "logprobs", "weights", "training_run"]
"""Which attacker an audit assumes; "auto": the strongest that the inputs allow."""
MUST_READ = ("weights", "training_run")
"""Observers with which an audit fails if the weights cannot be read."""
UNSEEN_WEIGHTS = (
    "`thorough=True` reads more of the weights, and the observer here does not see them: leave it out, or keep both "
    "models in memory and choose an observer that sees the weights"
)
UNREADABLE = (ModelError, DataError, StoreError)
"""Errors that say why weights cannot be read; log-probabilities may be had nevertheless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReading:
    """Scores of the texts from the weights, or why there are none."""

    scores: UpdateScores | None = None
    """None if the weights were not read."""
    info: UpdateInfo | None = None
    run: RunScores | None = None
    """Scores from the checkpoints of the training run; None if there are none."""
    run_info: TrainingRunInfo | None = None
    reason: str | None = None
    """Why the weights were not read."""
    run_reason: str | None = None
    """Why checkpoints that are at hand were not read."""


@dataclass(slots=True, kw_only=True)
class PreparedUpdate:
    """The attack on the weights, before the models run."""

    pair: AuditedPair
    """The pair, which reads gradients too when it runs."""
    must_read: bool
    """Raise an error if weights or checkpoints cannot be read; else the reading says why not."""
    folder: Path
    """Folder for the gradients."""
    attack: UpdateAttack | None = None
    reason: str | None = None
    """Why the weights are not read; then there is no attack."""
    path: RunPath | None = None
    """The checkpoints, if there are any."""
    run_reason: str | None = None
    """Why checkpoints that are at hand are not read; then there is no path."""
    seconds: float = 0.0
    """Seconds spent so far."""

    def read(self, report: Report) -> UpdateReading:
        """Score the texts by the update of the weights.

        Raises:
            ModelError: If weights or checkpoints must be read, and one of them cannot be, or a text does not fit into
                memory.
            DataError: If they must be read and too few texts have a gradient.
            StoreError: If they must be read and the disk has no room.
        """
        if self.attack is None:
            return self._unread(self.reason)
        started = time.perf_counter() - self.attack.gradients.seconds
        try:
            found = self.attack.score(report)
        except UNREADABLE as error:
            if self.must_read:
                raise
            return self._unread(_shown(error, self.pair, self.folder))
        info = UpdateInfo(
            explained=found.explained,
            n_coordinates=found.n_coordinates,
            layers=list(found.layers),
            points=list(found.points),
            rounded=found.rounded,
            unread=found.unread,
            seconds=self.seconds + time.perf_counter() - started,
        )
        return replace(self._read_run(self.attack, report), scores=found, info=info)

    def _unread(self, reason: str | None) -> UpdateReading:
        return UpdateReading(reason=reason, run_reason=reason if has_checkpoints(self.pair) else None)

    def _read_run(self, attack: UpdateAttack, report: Report) -> UpdateReading:
        """Score the texts by the updates between checkpoints, if there are any."""
        if self.path is None:
            return UpdateReading(run_reason=self.run_reason)
        started = time.perf_counter()
        read: list[ModelInfo] = []

        def identity(pair: Pair) -> str:
            found = PairIdentity.of(pair)
            read.append(found.target)
            return found.key

        try:
            run = score_run(attack, self.path, self.folder / CHECKPOINTS, identity=identity, report=report)
        except UNREADABLE as error:
            if self.must_read:
                raise
            return UpdateReading(run_reason=_shown(error, self.pair, self.folder))
        info = TrainingRunInfo(
            checkpoints=read,
            n_left_out=len(run.left_out),
            explained=list(run.explained),
            seconds=time.perf_counter() - started,
        )
        return UpdateReading(run=run, run_info=info)


@contextmanager
def prepared_update(
    pair: AuditedPair,
    texts: Texts,
    *,
    config: WeightsConfig | None,
    must_read: bool,
    max_length: int,
    identity: PairIdentity,
    folder: Path,
) -> Iterator[PreparedUpdate]:
    """Prepare to score texts by the update of the weights.

    Args:
        pair: Target and reference.
        texts: All texts of the audit; the non-members remove effects that all texts of this kind share.
        config: How to read weights and checkpoints; None: they are not read.
        must_read: Raise an error if they cannot be read; else the reading says why not.
        max_length: Token ids read of each text.
        identity: Hashes of both models: gradients of other models in the folder are not read.
        folder: Folder for the gradients, so that a killed run can resume.

    Raises:
        ModelError: If weights must be read and cannot be.
        DataError: If they must be read and there are too few texts.
        StoreError: If they must be read and the disk has no room.
    """
    if config is None:
        reason = "not asked for; the observer `weights` reads them"
        yield PreparedUpdate(pair=pair, must_read=False, folder=folder, reason=reason)
        return
    started = time.perf_counter()
    try:
        if not isinstance(pair, LoadedPair):
            raise ModelError("there are no weights to read: recordings hold log-probabilities only")
        if texts.rejected is not None:
            raise ModelError("the weights are read for single texts, not for preference pairs")
        encoded = pair.encode(texts, ExtractionConfig(max_length=max_length))
        attack = UpdateAttack(pair.models, encoded, folder, identity=identity.key, config=config)
    except UNREADABLE as error:
        if must_read:
            raise
        yield PreparedUpdate(pair=pair, must_read=False, folder=folder, reason=_shown(error, pair, folder))
        return
    with attack:
        path, run_reason = _read_path(attack, pair, must_read=must_read)
        yield PreparedUpdate(
            pair=replace(pair, gradients=attack.gradients),
            must_read=must_read,
            folder=folder,
            attack=attack,
            path=path,
            run_reason=run_reason,
            seconds=time.perf_counter() - started,
        )


def _read_path(attack: UpdateAttack, pair: LoadedPair, *, must_read: bool) -> tuple[RunPath | None, str | None]:
    """Look at the checkpoints before the models run for hours; return their path, or why there is none."""
    file = attack.gradients.file
    path = reason = None
    try:
        if has_checkpoints(pair):
            found = read_path(attack, pair.models.checkpoints)
            check_room(file.folder, replace(file.shape, n_points=file.shape.n_points + len(found.states)))
            path = found
    except UNREADABLE as error:
        if must_read:
            raise
        reason = _shown(error, pair, file.folder)
    forget_checkpoints(file.folder / CHECKPOINTS, 0 if path is None else len(path.states))
    return path, reason


def _shown(error: LtmiaError, pair: AuditedPair, folder: Path) -> str:
    """Return a message for the results, which may be passed on: without the folders of this machine."""
    checkpoints = () if pair.models is None else pair.models.checkpoints
    message = str(error)
    for place in (str(folder), *pair.sources, *(checkpoint.place for checkpoint in checkpoints)):
        message = message.replace(place, shown_path(place))
    return message


def check_observer(pair: AuditedPair, observer: ObserverChoice) -> None:
    """Refuse an observer that lacks what it needs, and checkpoints that it does not see.

    Raises:
        ConfigError: If it is refused.
    """
    if observer == "training_run" and not has_checkpoints(pair):
        raise ConfigError("observer `training_run`: give the states of the training run by `checkpoints`")
    if observer in ("logprobs", "weights") and has_checkpoints(pair):
        raise ConfigError(
            f"observer `{observer}`: it does not see the checkpoints that were given; leave them out, or take the "
            "observer `training_run`"
        )


def has_checkpoints(pair: AuditedPair) -> bool:
    """Say whether checkpoints of the training run were given."""
    return pair.models is not None and bool(pair.models.checkpoints)
