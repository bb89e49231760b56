"""Audits a model with canaries in its training file: the inserted ones are members, those left out non-members."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ltmia.auditing.audit import AuditConfig, audit_of
from ltmia.auditing.question import AuditResult
from ltmia.auditing.subject import Subject
from ltmia.auditing.text_sets import TextSets
from ltmia.canaries.key import CanaryKey, Reader, read_key, sha256_of_key
from ltmia.errors import ConfigError
from ltmia.evaluation.epsilon import epsilon_lower_bound
from ltmia.evaluation.files import read_results
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import Results
from ltmia.evaluation.section import Measure
from ltmia.evaluation.subjects import Canaries, CanariesByRepeats, NaturalBound
from ltmia.models.pair import Pair
from ltmia.ownership import refuse_inputs
from ltmia.progress import Report, silent
from ltmia.scoring.audited_pair import AuditedPair, PairToLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class CanarySubject(Subject):
    """Canaries, each inserted or left out by the toss of a fair coin."""

    key: CanaryKey
    sha256: str
    """Hash of the key."""
    beside: Results | None = None
    """An audit of the same target with other texts."""

    def hashes(self) -> Mapping[str, str]:
        """Return the hash of the key."""
        return {"canaries": self.sha256}

    def refuse(self, pair: AuditedPair) -> None:
        """Refuse another audit that is of another target."""
        if self.beside is None:
            return
        target, theirs = pair.identity().target, self.beside.target
        if (target.sha256, target.adapter) != (theirs.sha256, theirs.adapter):
            raise ConfigError(
                f"`beside` is an audit of another target ({theirs.source}, sha256 {theirs.sha256[:12]}); this one has "
                f"{target.sha256[:12]}. Give an audit of the model with canaries, or leave it out"
            )

    def epsilon(self, sets: TextSets, scores: Float64[np.ndarray, " texts"], seed: int) -> Measure:
        """Return the bound from the canaries with the fewest copies: more copies lose more than one text does."""
        return self._by_repeats(sets, scores, seed)[0].epsilon_of_a_copy

    def sections(self, sets: TextSets, scores: Float64[np.ndarray, " texts"], seed: int) -> Mapping[str, Any]:
        """Return figures by number of repeats, and the bound from natural texts."""
        made, other = self.key.settings, self.beside
        natural = (
            None
            if other is None
            else NaturalBound(
                run_id=other.run_id,
                n_members=other.data.n_members,
                n_nonmembers=other.data.n_nonmembers,
                epsilon=other.epsilon or Measure(reason="that audit has no bound on epsilon"),
            )
        )
        found = Canaries(
            temperature=made["temperature"],
            n_tokens=made["n_tokens"],
            seed=made["seed"],
            training_file=self.key.training_file,
            by_repeats=self._by_repeats(sets, scores, seed),
            natural=natural,
        )
        return {"canaries": found}

    def _by_repeats(self, sets: TextSets, scores: Float64[np.ndarray, " texts"], seed: int) -> list[CanariesByRepeats]:
        inserted, left_out = sets.split(scores)
        repeats_in, repeats_out = sets.split(np.array(self.key.repeats)[self.key.order])
        rows = []
        for repeats in sorted(self.key.settings["repeats"]):
            there, not_there = inserted[repeats_in == repeats], left_out[repeats_out == repeats]
            measured = measure_attack(there, left_out, seed=seed)
            epsilon = epsilon_lower_bound(there, not_there, by_coins=True, seed=seed)
            rows.append(
                CanariesByRepeats(
                    repeats=repeats,
                    n_inserted=int(np.isfinite(there).sum()),
                    n_left_out=int(np.isfinite(not_there).sum()),
                    auc=measured.auc,
                    tpr_at_fpr=measured.tpr_at_fpr,
                    epsilon=epsilon,
                    epsilon_of_a_copy=_of_a_copy(epsilon, repeats),
                )
            )
        return rows


def _of_a_copy(epsilon: Measure, copies: int) -> Measure:
    """Divide a bound by the number of copies: what one text may change by epsilon, k texts may change by k epsilon."""
    if epsilon.value is None:
        return epsilon
    return Measure(value=epsilon.value / copies, low=epsilon.value / copies)


def audit_canaries(
    pair: Pair | AuditedPair | PairToLoad,
    canaries: Path | str,
    out: Path | str,
    read: Reader,
    *,
    beside: Path | str | None = None,
    config: AuditConfig | None = None,
    report: Report = silent,
) -> AuditResult:
    """Audit a model that was trained on a file with canaries: as `audit` does, and by number of repeats.

    Args:
        pair: Target and reference.
        canaries: Folder written by `make_canaries`.
        out: Folder for the results.
        read: Reads the key's canaries as the target read its training texts, see `read_texts`.
        beside: Folder of an audit of the same target with natural texts, whose bound on epsilon is shown beside.
        config: Options.
        report: Called with progress.

    Raises:
        ConfigError: If the folder is none of canaries, key or training file were changed, or `beside` is of another
            target; and as `audit` does.
    """
    folder, out, config = Path(canaries), Path(out), config or AuditConfig()
    refuse_inputs(out, [folder, *([] if beside is None else [beside])])
    if config.deduplicate:
        raise ConfigError("deduplicate: leave it out, because no canary occurs twice")
    key = read_key(folder, read)
    other = None if beside is None else read_results(Path(beside))
    if other is not None and (other.kind != "audit" or other.canaries is not None):
        raise ConfigError(f"{beside}: expected the folder of an audit of natural texts")
    subject = CanarySubject(key=key, sha256=sha256_of_key(folder), beside=other)
    return audit_of(subject, pair, (key.members, key.nonmembers), out, config=config, report=report)
