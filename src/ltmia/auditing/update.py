"""Reads the weights for an audit: scores texts by how much of their gradient is in the update of the weights."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ltmia.attacks.table import CHECKPOINTS
from ltmia.errors import ConfigError, DataError, ModelError
from ltmia.evaluation.pair_info import ModelInfo
from ltmia.evaluation.results import TrainingRunInfo, UpdateInfo
from ltmia.models.pair import Checkpoint, Pair
from ltmia.progress import Report
from ltmia.records import Texts
from ltmia.scoring.audited_pair import AuditedPair, LoadedPair
from ltmia.scoring.extraction import ExtractionConfig
from ltmia.scoring.identity import PairIdentity
from ltmia.weights.checkpoints import RunPath, RunScores, read_path, score_run
from ltmia.weights.update_attack import UpdateAttack, UpdateScores

ObserverChoice = Literal["auto", "logprobs", "weights", "training_run"]
"""Which attacker an audit assumes; "auto": the strongest that the inputs allow."""
MUST_READ = ("weights", "training_run")
"""Observers with which an audit fails if the weights cannot be read."""


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
    observer: ObserverChoice
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
        """
        if self.attack is None:
            return self._unread(self.reason)
        started = time.perf_counter() - self.attack.gradients.seconds
        try:
            found = self.attack.score(report)
        except (ModelError, DataError) as error:
            if self.observer in MUST_READ:
                raise
            return self._unread(str(error))
        info = UpdateInfo(
            explained=found.explained,
            n_coordinates=found.n_coordinates,
            layers=list(found.layers),
            points=list(found.points),
            rounded=found.rounded,
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
        except (ModelError, DataError) as error:
            if self.observer in MUST_READ:
                raise
            return UpdateReading(run_reason=str(error))
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
    observer: ObserverChoice,
    *,
    max_length: int,
    identity: PairIdentity,
    folder: Path,
) -> Iterator[PreparedUpdate]:
    """Prepare to score texts by the update of the weights.

    Args:
        pair: Target and reference.
        texts: All texts of the audit; the non-members remove effects that all texts of this kind share.
        observer: "logprobs" does not read the weights, "weights" must read them, "training_run" must read checkpoints
            too, "auto" reads what it can and otherwise says why not.
        max_length: Token ids read of each text.
        identity: Hashes of both models: gradients of other models in the folder are not read.
        folder: Folder for the gradients, so that a killed run can resume.

    Raises:
        ModelError: If weights must be read and cannot be.
        DataError: If they must be read and there are too few texts.
    """
    if observer == "logprobs":
        reason = "not asked for; the observer `weights` reads them"
        yield PreparedUpdate(pair=pair, observer=observer, folder=folder, reason=reason)
        return
    started = time.perf_counter()
    try:
        if not isinstance(pair, LoadedPair):
            raise ModelError("there are no weights to read: recordings hold log-probabilities only")
        if texts.rejected is not None:
            raise ModelError("the weights are read for single texts, not for preference pairs")
        encoded = pair.encode(texts, ExtractionConfig(max_length=max_length))
        attack = UpdateAttack(pair.models, encoded, folder, identity=identity.key)
    except (ModelError, DataError) as error:
        if observer in MUST_READ:
            raise
        yield PreparedUpdate(pair=pair, observer=observer, folder=folder, reason=str(error))
        return
    with attack:
        path, run_reason = _read_path(attack, pair.models.checkpoints, observer)
        yield PreparedUpdate(
            pair=replace(pair, gradients=attack.gradients),
            observer=observer,
            folder=folder,
            attack=attack,
            path=path,
            run_reason=run_reason,
            seconds=time.perf_counter() - started,
        )


def _read_path(
    attack: UpdateAttack, checkpoints: Sequence[Checkpoint], observer: ObserverChoice
) -> tuple[RunPath | None, str | None]:
    """Look at the checkpoints before the models run for hours; return their path, or why there is none."""
    if not checkpoints:
        return None, None
    try:
        return read_path(attack, checkpoints), None
    except ModelError as error:
        if observer in MUST_READ:
            raise
        return None, str(error)


def check_observer(pair: AuditedPair, observer: ObserverChoice) -> None:
    """Refuse an observer that needs checkpoints without them, and one that does not see them with them.

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
