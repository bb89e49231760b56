"""Scores both sets of texts of an audit by every attack that takes part."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from ltmia.attacks.table import ATTACKS, CHECKPOINTS, LEARNED, UPDATE, WEIGHTS, WITH_WEIGHTS
from ltmia.auditing.measured import Scores
from ltmia.auditing.question import Question
from ltmia.auditing.secrets import FoundSecrets, find_secrets
from ltmia.auditing.update import (
    PreparedUpdate,
    UpdateReading,
    check_observer,
    has_checkpoints,
    prepared_update,
)
from ltmia.classifier.membership import MembershipClassifier, chosen_classifier
from ltmia.errors import ConfigError
from ltmia.evaluation.audit_folder import Run
from ltmia.evaluation.rounding import published
from ltmia.progress import Report
from ltmia.records import Texts
from ltmia.scoring.audited_pair import AuditedPair
from ltmia.scoring.extraction import ExtractionConfig, usable_length
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.kept_ranks import KeptRanks
from ltmia.scoring.multi_pass import KeptScores, MultiPassConfig, multi_pass_scores
from ltmia.scoring.stored_scores import ScoredTexts, Scorer, ScoringTask, StoredTexts, extraction_config
from ltmia.weights.combination import add_output_score
from ltmia.weights.update_attack import WeightsConfig

DIFFERENCE = "difference"
"""Attack that is the mean of D_t over a text; times the number of tokens, it is the log-ratio of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSets:
    """Scores of both sets of texts, and what they were computed with."""

    scores: Scores
    """Scores of every attack, rounded as in `records.parquet`, so that all figures can be computed again from there."""
    texts: ScoredTexts
    """Statistics of the texts, and the scores of attacks that read them."""
    update: UpdateReading
    """Scores of the attack on the weights."""
    secrets: FoundSecrets | None
    """Secrets in the texts, ranked among alternatives."""
    identity: PairIdentity
    classifier: MembershipClassifier | None
    """The learned classifier, if it took part."""
    lengths: Mapping[str, int | None]
    """See `lengths_read`."""
    started: float
    """Time at which scoring began, by `time.perf_counter`."""


def score_sets(pair: AuditedPair, question: Question, run: Run, *, scorer: Scorer, report: Report) -> ScoredSets:
    """Score both sets of texts.

    Args:
        pair: Target and reference.
        question: The texts, and the attacks that score them.
        run: Folder of the audit, held by this process; finished scores are kept in its private folder.
        scorer: Computes statistics and scores of the texts.
        report: Called with progress.
    """
    started = time.perf_counter()
    name = question.config.classifier
    classifier = chosen_classifier(name) if LEARNED in question.attacks else None
    pair.refuse(question.attacks, None if classifier is None else classifier.feature_version, reveal=question.reveal)
    _refuse_without_models(pair, question)
    check_observer(pair, question.config.observer)
    lengths = lengths_read(pair, question.sets.texts, question.max_length)
    identity = pair.identity()
    task = _scoring_task(pair, question, run, identity, classifier, report)
    with _prepared_update(pair, question, identity, run) as prepared:
        # Whatever is wrong with recordings, weights or checkpoints is refused before the folder is marked as theirs.
        run.begin_scoring()
        texts = scorer(prepared.pair, task)
        update = prepared.read(report)
    texts = _with_pair_scores(pair, question, task, run, texts, scorer)
    scores = {**texts.scores, **_several_passes(pair, question, texts, run, report)}
    scores |= _weights_scores(update, scores.get(LEARNED))
    secrets = _ranked_secrets(pair, question, texts, run, identity, report)
    return ScoredSets(
        scores={name: published(values) for name, values in scores.items()},
        texts=texts,
        update=update,
        secrets=secrets,
        identity=identity,
        classifier=classifier,
        lengths=lengths,
        started=started,
    )


def _with_pair_scores(
    pair: AuditedPair, question: Question, task: ScoringTask, run: Run, chosen: ScoredTexts, scorer: Scorer
) -> ScoredTexts:
    """Add the scores of preference pairs: the rejected texts go through the models as the chosen ones did."""
    functions = {name: ATTACKS[name].pairs for name in question.attacks}
    if question.sets.texts.rejected is None or not any(functions.values()):
        return chosen
    config = replace(task.config, attacks=(DIFFERENCE,), expectations=())
    rejected = scorer(
        pair,
        replace(task, texts=question.sets.texts.rejected, folder=run.private.rejected, config=config, classifier=None),
    )
    chosen.clock.add(rejected.clock)
    sums = [part.scores[DIFFERENCE] * part.n_tokens for part in (chosen, rejected)]
    found = {name: function(*sums) for name, function in functions.items() if function is not None}
    reasons = [
        reason or (other and f"rejected completion: {other}")
        for reason, other in zip(chosen.reasons, rejected.reasons, strict=True)
    ]
    return replace(chosen, scores={**chosen.scores, **found}, reasons=reasons)


def _refuse_without_models(pair: AuditedPair, question: Question) -> None:
    """Refuse options that run the models on other texts than the audited ones, if there are only recordings.

    Raises:
        ConfigError: If there are.
    """
    if pair.models is not None:
        return
    if question.spans is not None:
        raise ConfigError("`spans` needs the models themselves: recordings hold no other values than the true ones")
    if question.config.continuations:
        raise ConfigError("`continuations` needs the models themselves: recordings cannot continue a text")


def _ranked_secrets(
    pair: AuditedPair, question: Question, texts: ScoredTexts, run: Run, identity: PairIdentity, report: Report
) -> FoundSecrets | None:
    """Rank the secrets; each rank is kept in the private folder as soon as it is known."""
    if question.spans is None:
        return None
    kept = KeptRanks(run.private.ranks, identity.key)
    found = find_secrets(pair, question, report, kept)
    kept.finish(texts.clock, report)
    return found


def lengths_read(pair: AuditedPair, texts: Texts, asked: int) -> dict[str, int | None]:
    """Return the largest number of tokens read of a text, and the longest input of both models; null if unknown.

    Recordings are read and checked for this; they may hold less of the texts than was asked for.
    """
    if pair.models is None:
        encoded = pair.encode(texts, ExtractionConfig(max_length=asked))
        return {"max_length": min(asked, max(len(text.ids) for text in encoded)), "max_positions": None}
    return {"max_length": usable_length(pair.models, asked), "max_positions": pair.models.max_positions}


def _scoring_task(
    pair: AuditedPair,
    question: Question,
    run: Run,
    identity: PairIdentity,
    classifier: MembershipClassifier | None,
    report: Report,
) -> ScoringTask:
    config = question.config
    return ScoringTask(
        texts=question.sets.texts,
        folder=run.private.store,
        config=extraction_config(
            (*question.attacks, DIFFERENCE),  # checks of the models need it
            classifier,
            max_length=question.max_length,
            batch_size=config.batch_size,
            k=pair.k,
        ),
        identity=identity,
        classifier=classifier,
        report=report,
    )


def _weights_scores(update: UpdateReading, learned: Float64[np.ndarray, " texts"] | None) -> Scores:
    """Return the scores of the attacks that read weights."""
    found = update.scores
    if found is None:
        return {}
    scores = {UPDATE: found.score}
    if learned is not None:
        scores[WITH_WEIGHTS] = add_output_score(found.alpha, found.standard_error, learned)
    if update.run is not None:
        scores[CHECKPOINTS] = update.run.score
    return scores


def _prepared_update(
    pair: AuditedPair, question: Question, identity: PairIdentity, run: Run
) -> AbstractContextManager[PreparedUpdate]:
    """Prepare to read the weights if the learned attack takes part, they must be read, or checkpoints were given.

    They must be read for an attack on the weights that was named, and if more of them was asked for: without them,
    nothing would answer the question.
    """
    config = question.config
    must_read = config.must_read or not set(WEIGHTS).isdisjoint(question.attacks)
    asked = must_read or has_checkpoints(pair) or LEARNED in question.attacks
    reading = replace(WeightsConfig.of(thorough=config.thorough), batch_size=config.batch_size)
    return prepared_update(
        pair,
        question.sets.texts,
        config=reading if asked and config.observer != "logprobs" else None,
        must_read=must_read,
        max_length=question.max_length,
        identity=identity,
        folder=run.private.gradients,
    )


def _several_passes(pair: AuditedPair, question: Question, scored: ScoredTexts, run: Run, report: Report) -> Scores:
    """Score with the attacks that take several passes; finished ones are kept in `private/multi_pass`."""
    if pair.models is None or question.shots is None or not isinstance(scored, StoredTexts):
        return {}
    config = question.config
    return multi_pass_scores(
        pair.models,
        question.sets.texts.texts,
        question.attacks,
        MultiPassConfig(max_length=question.max_length, batch_size=config.batch_size, shots=question.shots),
        kept=KeptScores(
            folder=run.private.multi_pass,
            fingerprint=str(scored.store.manifest["fingerprint"]),
            reused=scored.clock.reused,
        ),
        report=report,
    )
