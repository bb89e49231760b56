"""The weights observer of an audit: scores texts by how much of their gradient is in the update of the weights."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ltmia.errors import DataError, ModelError
from ltmia.evaluation.results import UpdateInfo
from ltmia.progress import Report
from ltmia.records import Texts
from ltmia.scoring.audited_pair import AuditedPair, LoadedPair
from ltmia.scoring.extraction import ExtractionConfig
from ltmia.scoring.identity import PairIdentity
from ltmia.weights.update_attack import UpdateAttack, UpdateScores

ObserverChoice = Literal["auto", "logprobs", "weights"]
"""Which attacker an audit assumes; "auto": the strongest that the inputs allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReading:
    """Scores of the texts from the weights, or why there are none."""

    scores: UpdateScores | None = None
    """None if the weights were not read."""
    info: UpdateInfo | None = None
    reason: str | None = None
    """Why the weights were not read."""


@dataclass(slots=True, kw_only=True)
class PreparedUpdate:
    """The attack on the weights, before the models run."""

    pair: AuditedPair
    """The pair, which reads gradients too when it runs."""
    observer: ObserverChoice
    attack: UpdateAttack | None = None
    reason: str | None = None
    """Why the weights are not read; then there is no attack."""
    seconds: float = 0.0
    """Seconds spent so far."""

    def read(self, report: Report) -> UpdateReading:
        """Score the texts by the update of the weights.

        Raises:
            ModelError: If the observer is "weights" and a text does not fit into memory.
            DataError: If the observer is "weights" and too few texts have a gradient.
        """
        if self.attack is None:
            return UpdateReading(reason=self.reason)
        started = time.perf_counter() - self.attack.gradients.seconds
        try:
            found = self.attack.score(report)
        except (ModelError, DataError) as error:
            if self.observer == "weights":
                raise
            return UpdateReading(reason=str(error))
        info = UpdateInfo(
            explained=found.explained,
            n_coordinates=found.n_coordinates,
            layers=list(found.layers),
            points=list(found.points),
            seconds=self.seconds + time.perf_counter() - started,
        )
        return UpdateReading(scores=found, info=info)


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
        observer: "logprobs" does not read the weights, "weights" must read them, "auto" reads them if possible and
            otherwise says why not.
        max_length: Token ids read of each text.
        identity: Hashes of both models: gradients of other models in the folder are not read.
        folder: Folder for the gradients, so that a killed run can resume.

    Raises:
        ModelError: If the observer is "weights" and the weights cannot be read.
        DataError: If the observer is "weights" and there are too few texts.
    """
    if observer == "logprobs":
        yield PreparedUpdate(pair=pair, observer=observer, reason="not asked for; the observer `weights` reads them")
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
        if observer == "weights":
            raise
        yield PreparedUpdate(pair=pair, observer=observer, reason=str(error))
        return
    with attack:
        yield PreparedUpdate(
            pair=replace(pair, gradients=attack.gradients),
            observer=observer,
            attack=attack,
            seconds=time.perf_counter() - started,
        )
