"""One audit from texts to files: score both sets of texts, measure, check, and write everything down.

`audit` and `score` differ in what they ask (`Question`); the steps are the same and stand here once.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from ltmia.attacks.table import ATTACKS, CONTROL, LEARNED, UPDATE, WEIGHTS, WITH_WEIGHTS, Observer
from ltmia.auditing.checks import MeasuredScores, check_validity
from ltmia.auditing.question import AuditResult, Measured, Question, Scores
from ltmia.auditing.record_table import (
    flagged_hashes,
    group_columns,
    hashed_groups,
    published_ids,
    record_columns,
)
from ltmia.auditing.text_sets import TextSets
from ltmia.auditing.token_table import token_columns
from ltmia.auditing.update import UpdateReading, read_update
from ltmia.classifier.membership import MembershipClassifier, chosen_classifier
from ltmia.evaluation.audit_folder import Run
from ltmia.evaluation.files import write_groups, write_records, write_results, write_tokens
from ltmia.evaluation.results import DataInfo, ObserverResult, Results, SetTest, Timing, Validity
from ltmia.evaluation.rounding import published
from ltmia.evaluation.set_test import collection_test
from ltmia.evaluation.verdict import set_sentence, verdict
from ltmia.folders import shown_path
from ltmia.progress import Report
from ltmia.records import without_surrogates
from ltmia.report.page import write_report
from ltmia.runtime import environment
from ltmia.scoring.audited_pair import AuditedPair
from ltmia.scoring.extraction import usable_length
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.multi_pass import KeptScores, MultiPassConfig, multi_pass_scores
from ltmia.scoring.stored_scores import ScoredTexts, Scorer, ScoringTask, StoredTexts, extraction_config


def answer(
    pair: AuditedPair,
    question: Question,
    run: Run,
    *,
    scorer: Scorer,
    report: Report,
    command: str | None = None,
) -> AuditResult:
    """Score both sets of texts, measure, check, and write results, records, tokens and report into the run's folder.

    Every figure is of the scores as `records.parquet` holds them, rounded, so that it can be computed again from there.

    Args:
        pair: Target and reference.
        question: The texts, and what is asked about them.
        run: Folder for the results, held by this process.
        scorer: Scores the texts by way of `private/store`.
        report: Told the progress.
        command: Command line to write down; this process's when None.
    """
    started = time.perf_counter()
    sets, config = question.sets, question.config
    classifier = chosen_classifier(config.classifier) if LEARNED in question.attacks else None
    pair.refuse(question.attacks, None if classifier is None else classifier.feature_version, reveal=question.reveal)
    run.begin_scoring()
    identity = pair.identity()
    scored = scorer(pair, _scoring_task(pair, question, run, identity, classifier, report))
    update = _update(pair, question, identity, run, report)
    found = {**scored.scores, **_several_passes(pair, question, scored, run, report)}
    found |= _weights_scores(update, found.get(LEARNED))
    measured = question.measure(sets, {name: published(scores) for name, scores in found.items()})
    set_test = _set_test(sets, measured.scores[measured.judge], config.seed)
    validity = _check(pair, question, scored, measured, classifier)
    said = verdict(measured.attacks, measured.decisions.summary, validity)
    hashed = hashed_groups(sets, run.private.salt())
    records = _write_tables(pair, question, scored, measured, hashed, classifier, run)
    results = Results(
        **_provenance(pair, question, identity, command),
        run_id=run.run_id,
        data=data_info(sets, scored),
        attacks=dict(measured.attacks),
        decisions=measured.decisions.summary.model_copy(
            update={"flagged_groups": flagged_hashes(sets, hashed, measured.decisions)}
        ),
        observers={"weights": ObserverResult(reason=update.reason), **measured.observers},
        update=update.info,
        set_test=set_test,
        epsilon=measured.epsilon,
        validity=validity,
        verdict=said + set_sentence(set_test) if question.kind == "score" else said,
        timing=_timing(time.perf_counter() - started + scored.clock.earlier, sets, scored),
        reused=scored.clock.reused,
    )
    write_results(results, run.folder)
    write_report(run.folder)
    return AuditResult(results=results, records=records, folder=run.folder)


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
            (*question.attacks, *question.also_scored),
            classifier,
            max_length=config.max_length,
            batch_size=config.batch_size,
            k=pair.k,
        ),
        identity=identity,
        classifier=classifier,
        report=report,
    )


def _weights_scores(update: UpdateReading, learned: Float64[np.ndarray, " texts"] | None) -> Scores:
    """Return the scores that rest on the weights: the update's, and with the learned attack's their sum."""
    if update.score is None:
        return {}
    return {UPDATE: update.score} | ({} if learned is None else {WITH_WEIGHTS: learned + update.score})


def _check(
    pair: AuditedPair,
    question: Question,
    scored: ScoredTexts,
    measured: Measured,
    classifier: MembershipClassifier | None,
) -> Validity:
    found = MeasuredScores(
        control=measured.control,
        blind=measured.control_auc,
        judge=measured.scores[measured.judge],
        decisions=measured.decisions.summary,
        attacks=question.attacks,
    )
    return check_validity(pair, question.sets, scored, found, classifier=classifier, config=question.config)


def _provenance(pair: AuditedPair, question: Question, identity: PairIdentity, command: str | None) -> dict[str, Any]:
    return {
        "ltmia_version": version("ltmia"),
        "kind": question.kind,
        "created": datetime.now(UTC),
        "command": command or " ".join(map(shown_path, sys.argv)),
        "settings": question.config.settings | _classifier(question) | _lengths(pair, question.config.max_length),
        "environment": environment(),
        "target": identity.target,
        "reference": identity.reference,
        "tokenizer": identity.tokenizer,
    }


def _classifier(question: Question) -> dict[str, str | None]:
    name = question.config.classifier
    return {"classifier": None if name is None else shown_path(name)}


def _set_test(sets: TextSets, scores: Float64[np.ndarray, " texts"], seed: int) -> SetTest:
    """Test whether the texts to judge, as a collection, score higher than the non-members."""
    judged_groups, nonmember_groups = sets.split_groups
    return collection_test(
        *sets.split(sets.once(scores)), candidate_groups=judged_groups, nonmember_groups=nonmember_groups, seed=seed
    )


def data_info(sets: TextSets, scored: ScoredTexts) -> DataInfo:
    """Count texts of each kind."""
    _, repeated = sets.split(sets.repeats)
    _, scorable = sets.split(np.array([reason is None for reason in scored.reasons]))
    return DataInfo(
        **{"n_members": 0, f"n_{sets.judged}": sets.n_judged},
        n_nonmembers=sets.n_nonmembers,
        n_unscorable=sum(reason is not None for reason in scored.reasons),
        n_repeats=int(sets.repeats.sum()),
        n_nonmember_repeats=int(repeated.sum()),
        n_usable_nonmembers=int((scorable & ~repeated).sum()),
        n_cut=_n_cut(scored.truncated),
        n_groups=None if sets.groups is None else len(np.unique(sets.groups)),
    )


def judges(names: Iterable[str]) -> dict[Observer, str]:
    """Return the attack that decides for each observer; the learned one, where it took part."""
    order = [name for name in (*WEIGHTS, LEARNED) if name in names]
    order += [name for name in names if name not in (*order, CONTROL)]
    found: dict[Observer, str] = {}
    for name in order:
        found.setdefault(ATTACKS[name].observer, name)
    return found


def _update(pair: AuditedPair, question: Question, identity: PairIdentity, run: Run, report: Report) -> UpdateReading:
    """Read the update of the weights, where the learned attack takes part or the observer is named."""
    config = question.config
    wanted = config.observer == "weights" or not {LEARNED, *WEIGHTS}.isdisjoint(question.attacks)
    return read_update(
        pair,
        question.sets.texts,
        config.observer if wanted else "logprobs",
        max_length=config.max_length,
        identity=identity,
        folder=run.private.gradients,
        report=report,
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
        MultiPassConfig(max_length=config.max_length, batch_size=config.batch_size, shots=question.shots),
        kept=KeptScores(
            folder=run.private.multi_pass,
            fingerprint=str(scored.store.manifest["fingerprint"]),
            reused=scored.clock.reused,
        ),
        report=report,
    )


def _write_tables(
    pair: AuditedPair,
    question: Question,
    scored: ScoredTexts,
    measured: Measured,
    hashed: list[str | None],
    classifier: MembershipClassifier | None,
    run: Run,
) -> pa.Table:
    """Write the tables of records, groups and tokens; return the records."""
    sets = question.sets
    ids = published_ids(sets.texts, run.private.salt())
    columns = record_columns(sets, scored, measured.scores, measured.decisions, ids, hashed)
    if question.reveal:
        columns["text"] = [without_surrogates(text) for text in sets.texts.texts]
    records = write_records(columns, run.folder, run.run_id)
    if measured.decisions.groups is not None:
        write_groups(group_columns(sets, hashed, measured.decisions.groups), run.folder, run.run_id)
    if isinstance(scored, StoredTexts):  # Ray workers return scores, not token statistics
        revealed = (pair.models, sets.texts, question.config.max_length) if question.reveal and pair.models else None
        tokens = token_columns(scored, measured.scores[measured.judge], classifier=classifier, revealed=revealed)
        write_tokens(tokens, run)
    return records


def _n_cut(truncated: Sequence[bool | None]) -> int | None:
    """Count the texts that are longer than what is read of them; None if that is unknown for some."""
    known = [cut for cut in truncated if cut is not None]
    return sum(known) if len(known) == len(truncated) else None


def _lengths(pair: AuditedPair, asked: int) -> dict[str, int | None]:
    """Return the tokens read of each text at most, and the longest input of both models: null if neither says."""
    if pair.models is None:
        return {"max_length": asked, "max_positions": None}
    return {"max_length": usable_length(pair.models, asked), "max_positions": pair.models.max_positions}


def _timing(seconds: float, sets: TextSets, scored: ScoredTexts) -> Timing:
    return Timing(
        seconds=seconds,
        texts_per_second=len(sets.texts) / seconds,
        forward_seconds=scored.clock.forward.seconds,
        feature_seconds=scored.clock.feature_seconds,
    )
